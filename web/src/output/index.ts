/** The output of kernels: messages become rows (`Transcript`), and rows are shown (`Outputs`, `RowView`). */

export { Outputs } from "./Outputs";
export { rowsOfOutputs } from "./nbformat";
export type { Row } from "./rows";
export { RowView } from "./RowView";
export type { Said } from "./said";
export { Transcript } from "./transcript";

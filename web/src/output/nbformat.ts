/** Outputs in the form of notebooks (nbformat 4), as the API tells those of an execution, as rows. */

import type { Row } from "./rows";
import { fields, type Said, text } from "./said";
import { Transcript } from "./transcript";

export function rowsOfOutputs(outputs: readonly unknown[]): readonly Row[] {
  const transcript = new Transcript();
  transcript.take(outputs.map(messageOf));
  return transcript.rows;
}

function messageOf(output: unknown): Said {
  const content = fields(output);
  return {
    seq: null,
    channel: "iopub",
    header: { msg_type: text(content["output_type"]) },
    parent_header: {},
    metadata: {},
    content,
  };
}

import type { Row } from "./rows";
import { RowView } from "./RowView";
import "./output.css";

/** So many rows are shown of a list that is not virtual. */
const MOST = 200;

/** A few rows, as those of one execution. Of many, the last ones are shown. */
export function Outputs({ rows }: { rows: readonly Row[] }) {
  const hidden = Math.max(0, rows.length - MOST);
  return (
    <div class="outputs">
      {hidden > 0 && <p class="notice">What was said before is left out here: see the kernel's output.</p>}
      {rows.slice(hidden).map((row) => (
        <RowView key={row.key} row={row} revision={row.revision} />
      ))}
    </div>
  );
}

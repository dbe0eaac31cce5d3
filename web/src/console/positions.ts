/**
 * Positions in code. Jupyter counts code points, JavaScript and CodeMirror count UTF-16 units: an
 * emoji is one of the former and two of the latter.
 */

/** How many code points lie before a UTF-16 index. */
export function toCodePoints(code: string, index: number): number {
  let count = 0;
  for (let at = 0; at < index && at < code.length; count++) at += unitsAt(code, at);
  return count;
}

/** The UTF-16 index before which so many code points lie, at most the length of the code. */
export function toIndex(code: string, codePoints: number): number {
  let at = 0;
  for (let count = 0; count < codePoints && at < code.length; count++) at += unitsAt(code, at);
  return at;
}

function unitsAt(code: string, at: number): number {
  return (code.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
}

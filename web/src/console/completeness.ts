/** Whether code looks complete, for when the kernel is too busy to tell. */

const CLOSING: Record<string, string> = { ")": "(", "]": "[", "}": "{" };

/**
 * Whether Enter may run this code. The answer is about Python, and right for most languages that
 * close what they open; Shift-Enter runs code that this takes for incomplete.
 */
export function looksComplete(code: string): boolean {
  const trimmed = code.trimEnd();
  const start = lastStatement(trimmed);
  if (start === null) return false;
  const last = trimmed.slice(start);
  if (/[:\\]\s*(#.*)?$/.test(last) || last.startsWith("@")) return false;
  // A block ends with an empty line, as at Python's own prompt.
  return !/^[ \t]/.test(last) || start === 0 || /\n[ \t]*$/.test(code);
}

/**
 * Where the last statement begins, which may be several lines long; null if a bracket or a string
 * with three quotes is still open.
 */
function lastStatement(code: string): number | null {
  const open: string[] = [];
  let start = 0;
  for (let at = 0; at < code.length; at++) {
    const letter = code[at] ?? "";
    if (letter === "\n" && open.length === 0) {
      start = at + 1;
    } else if (letter === "#") {
      at = endOfLine(code, at) - 1;
    } else if (letter === '"' || letter === "'") {
      const end = endOfString(code, at);
      if (end === null) return null;
      at = end - 1;
    } else if ("([{".includes(letter)) {
      open.push(letter);
    } else if (letter in CLOSING && open.pop() !== CLOSING[letter]) {
      return 0; // this is wrong in any case, and the kernel says why
    }
  }
  return open.length === 0 ? start : null;
}

function endOfLine(code: string, at: number): number {
  const end = code.indexOf("\n", at);
  return end < 0 ? code.length : end;
}

/**
 * The index behind the string that begins here, or null if more lines belong to that. A string with
 * single quotes ends with its line: then it is wrong, and not incomplete.
 */
function endOfString(code: string, start: number): number | null {
  const quote = code[start] ?? "";
  const triple = quote.repeat(3);
  const isTriple = code.startsWith(triple, start);
  const end = isTriple ? triple : quote;
  for (let at = start + end.length; at < code.length; at++) {
    if (code[at] === "\\") at++;
    else if (code.startsWith(end, at)) return at + end.length;
    else if (code[at] === "\n" && !isTriple) return at;
  }
  return isTriple ? null : code.length;
}

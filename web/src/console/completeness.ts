/** Whether code looks complete, for when the kernel is too busy to tell. */

const CLOSING: Record<string, string> = { ")": "(", "]": "[", "}": "{" };

/**
 * Whether Enter may run this code. The answer is about Python, and right for most languages that
 * close what they open; Shift-Enter runs code that this takes for incomplete.
 */
export function looksComplete(code: string): boolean {
  const lines = code.trimEnd().split("\n");
  const last = lines[lines.length - 1] ?? "";
  if (!isBalanced(code) || /[:\\]\s*(#.*)?$/.test(last)) return false;
  if (/^@/.test(last)) return false; // a decorator without its function
  // A block ends with an empty line, as at Python's own prompt.
  return lines.length === 1 || !/^\s/.test(last) || /\n[ \t]*$/.test(code);
}

function isBalanced(code: string): boolean {
  const open: string[] = [];
  for (let at = 0; at < code.length; at++) {
    const letter = code[at] ?? "";
    if (letter === "#") {
      at = endOfLine(code, at);
    } else if (letter === '"' || letter === "'") {
      const triple = letter.repeat(3);
      const isTriple = code.startsWith(triple, at);
      const end = isTriple ? endOfTriple(code, at + 3, triple) : endOfQuoted(code, at + 1, letter);
      if (end === null) return false;
      at = end - 1;
    } else if ("([{".includes(letter)) {
      open.push(letter);
    } else if (letter in CLOSING && open.pop() !== CLOSING[letter]) {
      return true; // wrong in any case, and the kernel says why
    }
  }
  return open.length === 0;
}

function endOfLine(code: string, at: number): number {
  const end = code.indexOf("\n", at);
  return end < 0 ? code.length : end;
}

function endOfTriple(code: string, at: number, quotes: string): number | null {
  for (let index = at; index < code.length; index++) {
    if (code[index] === "\\") index++;
    else if (code.startsWith(quotes, index)) return index + 3;
  }
  return null;
}

/** A string with single quotes ends with its line: then it is wrong, and not incomplete. */
function endOfQuoted(code: string, at: number, quote: string): number {
  for (let index = at; index < code.length; index++) {
    if (code[index] === "\\") index++;
    else if (code[index] === quote) return index + 1;
    else if (code[index] === "\n") return index;
  }
  return code.length;
}

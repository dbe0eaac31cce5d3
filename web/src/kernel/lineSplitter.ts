/** Cuts a stream of text into lines. Of a line that is too long the beginning and the end are kept. */

export type Line =
  | { readonly whole: string }
  | { readonly head: string; readonly tail: string; readonly length: number };

export const LONGEST_LINE = 8 * 2 ** 20;
const HEAD = 64 * 1024;
const TAIL = 1024;

export class LineSplitter {
  private pieces: string[] = [];
  private length = 0;
  private tail = "";

  constructor(private readonly longest: number = LONGEST_LINE) {}

  /** The lines that end in this text. Blank ones, which only keep the connection alive, are left out. */
  push(text: string): Line[] {
    const lines: Line[] = [];
    let from = 0;
    for (;;) {
      const end = text.indexOf("\n", from);
      if (end < 0) break;
      this.add(text.slice(from, end));
      from = end + 1;
      const line = this.end();
      if (line !== null) lines.push(line);
    }
    this.add(text.slice(from));
    return lines;
  }

  private add(piece: string): void {
    if (piece === "") return;
    const before = this.length;
    this.length += piece.length;
    if (this.length <= this.longest) {
      this.pieces.push(piece);
      return;
    }
    if (before <= this.longest) {
      // The line has become too long with this piece: only its head is kept of what there was.
      const head = this.pieces.join("").slice(0, HEAD);
      this.tail = this.pieces.join("").slice(-TAIL);
      this.pieces = [head.length < HEAD ? head + piece.slice(0, HEAD - head.length) : head];
    }
    this.tail = (this.tail + piece).slice(-TAIL);
  }

  private end(): Line | null {
    const { length, tail } = this;
    const [head = "", ...more] = this.pieces;
    const whole = more.length === 0 ? head : this.pieces.join("");
    this.pieces = [];
    this.length = 0;
    this.tail = "";
    if (length > this.longest) return { head, tail, length };
    return whole.trim() === "" ? null : { whole };
  }
}

/** The number of a message in the log, by the end of a line that is not read as a whole. */
export function numberAtEnd(tail: string): number | null {
  const found = /"seq":(\d{1,16})\}\s*$/.exec(tail);
  return found === null ? null : Number(found[1]);
}

/** A text field by the beginning of its line: what is known of a message that is not read as a whole. */
export function textAtHead(head: string, field: string): string {
  const start = new RegExp(`"${field}"\\s{0,2}:\\s{0,2}"`).exec(head);
  if (start === null) return "";
  const from = start.index + start[0].length;
  const found = /^(?:[^"\\]|\\.)*/s.exec(head.slice(from, from + HEAD));
  let raw = found?.[0] ?? "";
  // An escape that the end has cut is left out.
  raw = raw.replace(/\\u[0-9a-fA-F]{0,3}$/, "");
  try {
    return JSON.parse(`"${raw}"`) as string;
  } catch {
    return "";
  }
}

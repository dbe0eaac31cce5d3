/** Streams cut into rows of some lines each, so that a list can show any part of them. */

import type { Origin, StreamRow } from "./rows";
import { foldLine, styleAtEnd } from "./terminal";

/** A row ends after so many lines or characters. */
export const ROW_LINES = 40;
export const ROW_CHARACTERS = 8192;

/** An unfinished line is folded at once when it has grown so long. */
const OPEN_CHARACTERS = 65_536;

export interface Piece {
  text: string;
  lines: number;
  style: string;
  origin: Origin;
  /** The number of the last message in it. */
  to: number;
}

/**
 * Takes a stream's text, message by message, and gives it back in pieces.
 *
 * The last piece is open: it grows, and its last line may be overwritten. `settle` brings its text up to
 * date, which costs time in proportion to that line, so that is done once for many messages.
 */
export class StreamText {
  readonly pieces: Piece[] = [];
  private sealed = "";
  private open = "";
  private style: string;
  private lineStyle: string;
  private lines = 0;
  private origin: Origin;

  constructor(origin: Origin, style = "") {
    this.origin = origin;
    this.style = this.lineStyle = style;
  }

  take(seq: number, text: string, skip = 0): void {
    let from = skip;
    while (from < text.length) {
      let end = text.indexOf("\n", from);
      const complete = end >= 0 && end - from < ROW_CHARACTERS;
      if (!complete) end = Math.min(text.length, from + ROW_CHARACTERS);
      this.open += text.slice(from, end);
      from = complete ? end + 1 : end;
      if (complete) this.endLine(seq, from);
      else if (this.open.length > OPEN_CHARACTERS) this.compact(seq, from);
      else if (from < text.length) this.compact(seq, from);
    }
  }

  /** The open piece as it would be shown now, or null if nothing is in it. */
  settle(to: number): Piece | null {
    const folded = foldLine(this.open, this.lineStyle);
    this.open = folded.state;
    if (folded.shown.length > ROW_CHARACTERS) {
      this.cut(folded.shown, { seq: to, offset: Number.MAX_SAFE_INTEGER }, to);
      return null;
    }
    if (this.sealed === "" && folded.shown === "") return null;
    return this.piece(this.sealed + folded.shown, to);
  }

  /** Where the open piece begins. */
  peek(to: number): Piece {
    return this.piece("", to);
  }

  private endLine(seq: number, offset: number): void {
    const { shown } = foldLine(this.open, this.lineStyle);
    this.lineStyle = styleAtEnd(shown, this.lineStyle);
    this.sealed += `${shown}\n`;
    this.open = "";
    this.lines += 1;
    if (this.lines >= ROW_LINES || this.sealed.length >= ROW_CHARACTERS) {
      this.cut("", { seq, offset }, seq);
    }
  }

  /** Fold the long open line; if much of it is left, it goes into a piece as it stands. */
  private compact(seq: number, offset: number): void {
    const folded = foldLine(this.open, this.lineStyle);
    this.open = folded.state;
    if (folded.shown.length >= ROW_CHARACTERS) this.cut(folded.shown, { seq, offset }, seq);
  }

  private cut(shown: string, next: Origin, to: number): void {
    this.pieces.push(this.piece(this.sealed + shown, to));
    this.lineStyle = this.style = styleAtEnd(shown, this.lineStyle);
    this.sealed = this.open = "";
    this.lines = 0;
    this.origin = next;
  }

  private piece(text: string, to: number): Piece {
    // Looking into a text that was put together makes one string of it: the browser would otherwise
    // keep each part, and whatever that was cut out of.
    const flat = text.indexOf("\n", text.length - 1) === -1 ? text : text.concat();
    return { text: flat, lines: this.lines, style: this.style, origin: this.origin, to };
  }
}

/** The text of one row, read again from the messages behind its origin. */
export function streamAgain(row: StreamRow, texts: readonly { seq: number; text: string }[]): string {
  const stream = new StreamText(row.origin, row.style);
  for (const { seq, text } of texts) {
    if (seq < row.origin.seq || seq > row.to) continue;
    stream.take(seq, text, seq === row.origin.seq ? row.origin.offset : 0);
    const [first] = stream.pieces;
    if (first !== undefined) return first.text;
  }
  return (stream.settle(row.to) ?? stream.pieces[0])?.text ?? "";
}

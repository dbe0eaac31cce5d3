/** Turns the messages of a kernel into rows. Pure: it knows of no page and no network. */

import type { CodeRow, DisplayRow, ErrorRow, GapRow, InputRow, LargeRow, NoticeRow, PassedRow, Row, StreamRow } from "./rows";
import { fields, parentOf, type Said, text, timeOf, typeOf } from "./said";
import { type Piece, StreamText, streamAgain } from "./stream";

/** A text of a stream, an error or a code that is larger is shown when it is asked for. */
export const LARGE_CHARACTERS = 2 ** 20;
export const HEAD_CHARACTERS = 4096;

/** Of so many requests, the newest, it is known which rows are theirs: clear_output is for these. */
const MAX_PARENTS = 200;
/** So many displays can be updated, the newest. */
const MAX_DISPLAYS = 10_000;
const MAX_TRACEBACK = 200_000;

interface Open {
  readonly stream: StreamText;
  readonly row: StreamRow;
  /** How many of the stream's pieces are rows already. */
  made: number;
}

interface Parent {
  rows: Row[];
  /** Its output is to be cleared when more of it comes. */
  clears: boolean;
}

const STATES: Readonly<Record<string, string>> = {
  restarting: "The kernel is restarting: what code had defined is lost.",
  dead: "The kernel is dead.",
};

export class Transcript {
  /** The rows, in the order of the log. The array is the same one for good. */
  readonly rows: Row[] = [];
  /** Counts all changes. */
  revision = 0;
  private key = 0;
  private open: Open | null = null;
  private readonly parents = new Map<string, Parent>();
  private readonly displays = new Map<string, DisplayRow[]>();

  /** Take messages, in the order of their numbers. Tells whether a row has changed. */
  take(messages: readonly Said[]): boolean {
    const before = this.revision;
    for (const message of messages) this.one(message);
    this.settle();
    return this.revision !== before;
  }

  /** The log has lost so many messages, up to a number. */
  gap(seq: number, messages: number, bytes: number): void {
    this.close();
    const row: GapRow = { ...this.base(seq, "", null), kind: "gap", messages, bytes };
    this.push(row);
  }

  /** So many messages, up to a number, were not read. */
  passed(seq: number, messages: number): void {
    this.close();
    const row: PassedRow = { ...this.base(seq, "", null), kind: "passed", messages };
    row.from = seq - messages + 1;
    this.push(row);
  }

  /** Tell something between the rows. */
  notice(notice: string, seq = 0, at: number | null = null): void {
    this.close();
    const row: NoticeRow = { ...this.base(seq, "", at), kind: "notice", notice };
    this.push(row);
  }

  /** A message that was too large to be read whole: only how it begins is known. */
  large(seq: number, what: string, whole: number, head: string, parent = "", at: number | null = null): void {
    this.close();
    const shown = head.slice(0, HEAD_CHARACTERS);
    const row: LargeRow = { ...this.base(seq, parent, at), kind: "large", what, whole, head: shown };
    row.size = shown.length;
    this.push(row);
  }

  /** Forget the first rows. Tells how many of them were forgotten. */
  forget(count: number): number {
    if (this.open !== null && this.rows.indexOf(this.open.row) < count) this.close();
    const gone = new Set<Row>(this.rows.splice(0, count));
    for (const parent of this.parents.values()) {
      if (parent.rows.some((row) => gone.has(row))) parent.rows = parent.rows.filter((row) => !gone.has(row));
    }
    for (const [id, rows] of this.displays) {
      const left = rows.filter((row) => !gone.has(row));
      if (left.length === 0) this.displays.delete(id);
      else this.displays.set(id, left);
    }
    this.revision += 1;
    return gone.size;
  }

  /** Drop the content of a row from memory. */
  drop(row: Row): void {
    if (row.dropped || row === this.open?.row) return;
    emptied(row);
    row.dropped = true;
    row.size = 0;
    this.changed(row);
  }

  /** Give a dropped row its content again, by the messages between its numbers. */
  restore(row: Row, messages: readonly Said[]): void {
    if (!row.dropped) return;
    refilled(row, messages);
    row.dropped = false;
    row.size = sizeOf(row);
    this.changed(row);
  }

  private one(message: Said): void {
    const { content } = message;
    switch (typeOf(message)) {
      case "stream":
        return this.stream(message, text(content["text"]));
      case "display_data":
      case "execute_result":
        return this.display(message);
      case "update_display_data":
        return this.update(message);
      case "error":
        return this.error(message);
      case "execute_input":
        return this.code(message);
      case "clear_output":
        return this.clear(parentOf(message), content["wait"] === true);
      case "input_request":
        return this.input(message);
      case "status":
        return this.status(message);
      default:
    }
  }

  private base(seq: number, parent: string, at: number | null) {
    this.key += 1;
    return { key: this.key, revision: 0, from: seq, to: seq, parent, at, size: 0, dropped: false };
  }

  private baseOf(message: Said) {
    return this.base(message.seq ?? 0, parentOf(message), timeOf(message));
  }

  private push(row: Row): void {
    this.rows.push(row);
    this.revision += 1;
    if (row.parent !== "") this.parent(row.parent).rows.push(row);
  }

  private changed(row: Row): void {
    row.revision += 1;
    this.revision += 1;
  }

  private parent(id: string): Parent {
    let parent = this.parents.get(id);
    if (parent === undefined) {
      parent = { rows: [], clears: false };
      this.parents.set(id, parent);
      if (this.parents.size > MAX_PARENTS) {
        for (const oldest of this.parents.keys()) {
          this.parents.delete(oldest);
          break;
        }
      }
    }
    return parent;
  }

  /** What must be done before an output of a request is shown. */
  private before(parent: string): void {
    if (this.parents.get(parent)?.clears) this.clear(parent, false);
  }

  private stream(message: Said, written: string): void {
    const parent = parentOf(message);
    const seq = message.seq ?? 0;
    this.before(parent);
    const name = text(message.content["name"]) || "stdout";
    if (written.length > LARGE_CHARACTERS) {
      return this.large(seq, name, written.length, written, parent, timeOf(message));
    }
    if (this.open === null || this.open.row.parent !== parent || this.open.row.name !== name) {
      this.close();
      this.begin(message, name, new StreamText({ seq, offset: 0 }));
    }
    this.open?.stream.take(seq, written);
    while (this.open !== null && this.open.made < this.open.stream.pieces.length) this.cut(message, seq);
    if (this.open !== null) this.open.row.to = seq;
  }

  private begin(message: Said, name: string, stream: StreamText, made = 0, piece?: Piece): void {
    const row: StreamRow = {
      ...this.baseOf(message),
      kind: "stream",
      name,
      text: "",
      lines: 0,
      style: piece?.style ?? "",
      origin: piece?.origin ?? { seq: message.seq ?? 0, offset: 0 },
    };
    this.open = { stream, row, made };
    this.push(row);
  }

  /** The open row is complete; the next one begins with what is left, if that is anything. */
  private cut(message: Said, seq: number): void {
    if (this.open === null) return;
    const { stream, row } = this.open;
    const piece = stream.pieces[this.open.made];
    if (piece === undefined) return;
    this.fill(row, piece);
    const made = this.open.made + 1;
    const next = stream.pieces[made] ?? stream.peek(seq);
    this.begin(message, row.name, stream, made, next);
    if (made >= 64) {
      stream.pieces.splice(0, made);
      this.open.made = 0;
    }
  }

  private fill(row: StreamRow, piece: Piece): void {
    if (row.text === piece.text && row.to === piece.to) return;
    row.text = piece.text;
    row.lines = piece.lines;
    row.to = piece.to;
    row.size = piece.text.length;
    this.changed(row);
  }

  private settle(): void {
    if (this.open === null) return;
    const { stream, row } = this.open;
    const piece = stream.settle(row.to);
    const last = piece ?? stream.pieces[this.open.made];
    if (last !== undefined) this.fill(row, last);
    if (piece === null && last !== undefined) this.open = null;
  }

  /** The open row is complete, as something else comes. A row without any text goes. */
  private close(): void {
    this.settle();
    const row = this.open?.row;
    this.open = null;
    if (row !== undefined && row.text === "" && !row.dropped) this.remove([row]);
  }

  private display(message: Said): void {
    this.before(parentOf(message));
    this.close();
    const { content } = message;
    const id = fields(content["transient"])["display_id"];
    const displayId = typeof id === "string" ? id : null;
    const row: DisplayRow = {
      ...this.baseOf(message),
      kind: "display",
      data: fields(content["data"]),
      metadata: fields(content["metadata"]),
      displayId,
      result: typeOf(message) === "execute_result",
      count: countOf(content),
      content: message.seq ?? 0,
    };
    row.size = sizeOf(row);
    this.push(row);
    if (displayId !== null) this.remember(displayId, row);
  }

  private remember(id: string, row: DisplayRow): void {
    const rows = this.displays.get(id);
    if (rows !== undefined) rows.push(row);
    else this.displays.set(id, [row]);
    if (this.displays.size > MAX_DISPLAYS) {
      for (const oldest of this.displays.keys()) {
        this.displays.delete(oldest);
        break;
      }
    }
  }

  private update(message: Said): void {
    const { content } = message;
    const id = fields(content["transient"])["display_id"];
    if (typeof id !== "string") return;
    for (const row of this.displays.get(id) ?? []) {
      row.content = message.seq ?? 0;
      row.data = fields(content["data"]);
      row.metadata = fields(content["metadata"]);
      row.dropped = false;
      row.size = sizeOf(row);
      this.changed(row);
    }
  }

  private error(message: Said): void {
    this.before(parentOf(message));
    this.close();
    const row: ErrorRow = { ...this.baseOf(message), kind: "error", name: "", value: "", traceback: "" };
    refilled(row, [message]);
    row.size = sizeOf(row);
    this.push(row);
  }

  private code(message: Said): void {
    this.close();
    const { content } = message;
    const code = text(content["code"]);
    if (code.length > LARGE_CHARACTERS) {
      return this.large(message.seq ?? 0, "code", code.length, code, parentOf(message), timeOf(message));
    }
    const row: CodeRow = { ...this.baseOf(message), kind: "code", code, count: countOf(content) };
    row.size = code.length;
    this.push(row);
  }

  private input(message: Said): void {
    this.close();
    const { content } = message;
    const prompt = text(content["prompt"]).slice(0, HEAD_CHARACTERS);
    const password = content["password"] === true;
    const row: InputRow = { ...this.baseOf(message), kind: "input", prompt, password };
    row.size = prompt.length;
    this.push(row);
  }

  private status(message: Said): void {
    const notice = STATES[text(message.content["execution_state"])];
    if (notice !== undefined) this.notice(notice, message.seq ?? 0, timeOf(message));
  }

  private clear(parent: string, wait: boolean): void {
    const known = this.parents.get(parent);
    if (known === undefined) return;
    known.clears = wait;
    if (wait) return;
    if (this.open?.row.parent === parent) this.open = null;
    const outputs = known.rows.filter((row) => row.kind !== "code" && row.kind !== "notice");
    known.rows = known.rows.filter((row) => row.kind === "code" || row.kind === "notice");
    this.remove(outputs);
  }

  private remove(rows: readonly Row[]): void {
    if (rows.length === 0) return;
    const gone = new Set<Row>(rows);
    // They are near the end, as a rule: only the rows from the first of them on are looked at.
    let first = this.rows.length;
    for (let left = gone.size; left > 0 && first > 0; ) {
      first -= 1;
      const row = this.rows[first];
      if (row !== undefined && gone.has(row)) left -= 1;
    }
    const kept = this.rows.slice(first).filter((row) => !gone.has(row));
    this.rows.length = first;
    for (const row of kept) this.rows.push(row);
    this.revision += 1;
  }
}

function countOf(content: Readonly<Record<string, unknown>>): number | null {
  const count = content["execution_count"];
  return typeof count === "number" ? count : null;
}

function sizeOf(row: Row): number {
  switch (row.kind) {
    case "stream":
      return row.text.length;
    case "display":
      return Object.values(row.data).reduce<number>((sum, value) => sum + text(value).length, 0);
    case "error":
      return row.value.length + row.traceback.length;
    case "code":
      return row.code.length;
    case "large":
      return row.head.length;
    default:
      return 0;
  }
}

function emptied(row: Row): void {
  if (row.kind === "stream") row.text = "";
  else if (row.kind === "display") row.data = row.metadata = {};
  else if (row.kind === "error") row.value = row.traceback = "";
  else if (row.kind === "code") row.code = "";
  else if (row.kind === "large") row.head = "";
}

/** The end of a traceback, which tells most. */
function traceback(lines: unknown): string {
  const list = Array.isArray(lines) ? lines : [];
  const whole = list.map(text).join("\n");
  return whole.length <= MAX_TRACEBACK ? whole : `…\n${whole.slice(-MAX_TRACEBACK)}`;
}

function refilled(row: Row, messages: readonly Said[]): void {
  if (row.kind === "stream") {
    const texts = messages
      .filter((one) => typeOf(one) === "stream" && parentOf(one) === row.parent)
      .filter((one) => (text(one.content["name"]) || "stdout") === row.name)
      .map((one) => ({ seq: one.seq ?? 0, text: text(one.content["text"]) }));
    row.text = streamAgain(row, texts);
    return;
  }
  const number = row.kind === "display" ? row.content : row.from;
  const content = messages.find((one) => (one.seq ?? 0) === number)?.content;
  if (content === undefined) return;
  if (row.kind === "display") {
    row.data = fields(content["data"]);
    row.metadata = fields(content["metadata"]);
  } else if (row.kind === "error") {
    row.name = text(content["ename"]);
    row.value = text(content["evalue"]).slice(0, MAX_TRACEBACK);
    row.traceback = traceback(content["traceback"]);
  } else if (row.kind === "code") row.code = text(content["code"]);
  else if (row.kind === "large") row.head = text(content["text"] ?? content["code"]).slice(0, HEAD_CHARACTERS);
}

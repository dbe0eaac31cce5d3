/**
 * A session of the console: what was entered, what became of it, and what the kernel asks for.
 *
 * This class has no I/O and no clock. It takes messages in the order of the kernel's log and changes
 * its cells; what has to be done because of a message is returned as effects.
 */

import { moment, numeric, object, text } from "./messages";
import type { Fields, KernelMessage } from "./messages";

/**
 * waiting: not sent yet. sent: the kernel has not begun with it. unsure: the connection broke before
 * the server was heard to have it. Then running, and exactly one end.
 */
export type CellState =
  | "waiting"
  | "sent"
  | "unsure"
  | "running"
  | "ok"
  | "error"
  | "aborted"
  | "cancelled"
  | "lost";

const ENDS: ReadonlySet<string> = new Set(["ok", "error", "aborted", "cancelled", "lost"]);

/** What a cell's output is kept in: the renderer's transcript. */
export interface Output {
  take(messages: readonly KernelMessage[]): boolean;
}

/** The kernel waits for a line of text. */
export interface Prompt {
  /** The id of the `input_request`. */
  id: string;
  text: string;
  password: boolean;
  request: KernelMessage;
}

/** A prompt that was answered; null where the answer is not to be shown, or not known. */
export interface Answered {
  text: string;
  answer: string | null;
}

export interface Cell<O extends Output = Output> {
  readonly kind: "cell";
  /** The id of its `execute_request`, by which the API knows the execution. */
  readonly id: string;
  readonly mine: boolean;
  /** The user name that another client gave; empty for none. */
  readonly by: string;
  /** Null if the code was sent before this console began to listen. */
  code: string | null;
  state: CellState;
  count: number | null;
  started: number | null;
  ended: number | null;
  output: O;
  prompt: Prompt | null;
  /** The last prompt, answered or not. */
  asked: Prompt | null;
  answered: Answered[];
  /** The number in the log behind which all messages of this cell lie. */
  after: number;
  /** Whether the kernel has said what code it runs. A cell that is aborted is busy, too. */
  begun: boolean;
  failed: boolean;
  /** Counts the changes, for who draws the cell. */
  revision: number;
}

/** Something that concerns no cell. */
export interface Note<O extends Output = Output> {
  readonly kind: "note";
  readonly id: string;
  readonly text: string;
  /** What the kernel has said without a request; null if there is only the text. */
  readonly output: O | null;
  revision: number;
}

export type Item<O extends Output = Output> = Cell<O> | Note<O>;

export type Effect =
  | { do: "verify"; id: string } // ask the API what became of the execution
  | { do: "insert"; text: string }; // the kernel proposes the next input

/** What the API tells of an execution. */
export interface Fate {
  state: "queued" | "running" | "ok" | "error" | "aborted" | "cancelled" | "lost";
  /** The id of the open `input_request`. */
  prompt: string | null;
}

export const MAX_ITEMS = 10_000;

export class Session<O extends Output = Output> {
  items: Item<O>[] = [];
  /** What the kernel has told of itself last: `starting`, `idle`, `busy`, `restarting`, `dead`, … */
  kernel = "";
  /** How many old items were dropped to stay within `MAX_ITEMS`. */
  dropped = 0;
  #cells = new Map<string, Cell<O>>();
  /** The cells that have not ended, in their order: few, however many cells there are. */
  #unended = new Set<Cell<O>>();
  /** Which cells show a display, by its `display_id`: updates come with any cell. */
  #displays = new Map<string, Set<Cell<O>>>();
  /** What was cleared last: output that comes late for these is not shown. */
  #cleared = new Set<string>();
  #changed = new Set<Item<O>>();
  #notes = 0;

  constructor(
    readonly id: string,
    readonly newOutput: () => O,
  ) {}

  // What the user does

  /** Note what was entered. It waits until it is sent. `after` is how far the log is known. */
  enter(id: string, code: string, after: number): Cell<O> {
    return this.#addCell({ id, code, mine: true, by: "", state: "waiting", after });
  }

  /** The next cell to send, unless it is not known yet whether an earlier one has arrived. */
  get next(): Cell<O> | null {
    for (const cell of this.#unended) {
      if (cell.state === "unsure") return null;
      if (cell.state === "waiting") return cell;
    }
    return null;
  }

  sent(cell: Cell<O>): void {
    cell.state = "sent";
    this.#touch(cell);
  }

  /** A cell that waits is not to be sent any more. */
  withdraw(cell: Cell<O>): void {
    if (cell.state !== "waiting") return;
    this.#remove([cell]);
  }

  /** The prompt that is to be answered now, and its cell. */
  get asking(): { cell: Cell<O>; prompt: Prompt } | null {
    for (const cell of this.#unended)
      if (cell.prompt !== null) return { cell, prompt: cell.prompt };
    return null;
  }

  /** The user has answered a prompt; a password is not shown. */
  answer(cell: Cell<O>, value: string): void {
    const prompt = cell.prompt;
    if (prompt === null) return;
    cell.answered.push({ text: prompt.text, answer: prompt.password ? null : value });
    cell.prompt = null;
    this.#touch(cell);
  }

  /** Remove what has ended; returns the number in the log behind which the rest lies. */
  clear(last: number): number {
    const gone = this.items.filter((item) => item.kind === "note" || ENDS.has(item.state));
    this.#remove(gone);
    this.#cleared = new Set(gone.map(({ id }) => id));
    this.dropped = 0;
    const rest = [...this.#unended].map((cell) => cell.after);
    return Math.min(last, ...rest);
  }

  // What the connection does

  /** The connection is lost: what was sent and not heard of may not have arrived. */
  lost(): void {
    for (const cell of this.#unended) {
      if (cell.mine && cell.state === "sent") {
        cell.state = "unsure";
        this.#touch(cell);
      }
    }
  }

  /** The cells whose fate is to be asked for when the connection is back. */
  get unsure(): Cell<O>[] {
    return [...this.#unended].filter((cell) => cell.state === "unsure");
  }

  /** The cells of this session that have not ended, and whose end may have been missed. */
  get open(): Cell<O>[] {
    return [...this.#unended].filter((cell) => cell.mine && cell.state !== "waiting");
  }

  /** The cells that have not been sent. */
  get waiting(): Cell<O>[] {
    return [...this.#unended].filter((cell) => cell.state === "waiting");
  }

  /**
   * What the API says of a cell; null: the server never got it. `isBack`: the connection was lost and
   * is back, so an answer to a prompt may have been lost with it.
   */
  verified(id: string, fate: Fate | null, isBack: boolean): void {
    const cell = this.#cells.get(id);
    if (cell === undefined || ENDS.has(cell.state)) return;
    if (fate === null) {
      // A cell that has begun is known to the kernel, whatever the server has forgotten meanwhile.
      if (cell.state === "unsure") cell.state = "waiting";
      else if (cell.state === "running" || cell.state === "sent") this.#finish(cell, "lost", null);
    } else if (fate.state === "queued") {
      if (cell.state === "unsure") cell.state = "sent";
    } else if (fate.state === "running") {
      if (cell.state === "unsure" || cell.state === "sent") cell.state = "running";
    } else {
      this.#finish(cell, fate.state, null);
    }
    const asked = cell.asked;
    if (cell.prompt !== null && fate?.prompt !== cell.prompt.id) {
      cell.answered.push({ text: cell.prompt.text, answer: null });
      cell.prompt = null;
    } else if (isBack && cell.prompt === null && asked !== null && fate?.prompt === asked.id) {
      cell.answered.pop();
      cell.prompt = asked;
    }
    this.#touch(cell);
  }

  /** Add a line of the console's own to the list. */
  note(words: string, output: O | null = null): void {
    this.#add({ kind: "note", id: `note-${++this.#notes}`, text: words, output, revision: 0 });
  }

  // What the kernel says

  take(message: KernelMessage): Effect[] {
    const { msg_type: type } = message.header;
    if (type === "status") return this.#takeStatus(message);
    if (message.channel === "stdin") return this.#takePrompt(message);
    if (message.channel === "iopub") return this.#takeSaid(message);
    return type === "execute_reply" ? this.#takeReply(message) : [];
  }

  /** The items that have changed since the last call. */
  changes(): ReadonlySet<Item<O>> {
    const changed = this.#changed;
    this.#changed = new Set();
    return changed;
  }

  get busy(): boolean {
    return this.#runs || this.kernel === "busy";
  }

  get #runs(): boolean {
    for (const cell of this.#unended) if (cell.state === "running") return true;
    return false;
  }

  #takeStatus(message: KernelMessage): Effect[] {
    const state = text(message.content, "execution_state");
    const parent = message.parent_header;
    const cell = this.#cells.get(parent.msg_id ?? "");
    if (parent.msg_id === undefined || parent.msg_type === undefined) {
      this.#takeOwnState(state);
    } else if (parent.msg_type === "execute_request") {
      this.kernel = state;
      if (cell !== undefined && state === "busy") this.#begin(cell, message);
      if (cell !== undefined && state === "idle") this.#idle(cell, message);
    } else if (!this.#runs) {
      this.kernel = state; // of a completion, say; one on another channel tells nothing of a cell
    }
    return [];
  }

  /** A status that belongs to no request tells of the kernel's process. */
  #takeOwnState(state: string): void {
    const before = this.kernel;
    this.kernel = state;
    const isNew = before !== "" && before !== state;
    if (!isNew || before === "restarting" || before === "starting") return;
    if (state === "restarting")
      this.note("The kernel has died, and is restarted. What the code had defined is gone.");
    else if (state === "starting")
      this.note("The kernel is restarted. What the code had defined is gone.");
    else if (state === "dead") this.note("The kernel is dead.");
  }

  #begin(cell: Cell<O>, message: KernelMessage): void {
    if (ENDS.has(cell.state)) return;
    cell.state = "running";
    cell.started = moment(message.header);
    this.#touch(cell);
    if (message.parent_header.subshell_id) return;
    // The main shell runs one cell at a time: the end of another client's cell was missed.
    for (const other of this.#unended)
      if (other !== cell && !other.mine && other.state === "running")
        this.#finish(other, other.failed ? "error" : "ok", null);
  }

  #idle(cell: Cell<O>, message: KernelMessage): void {
    if (ENDS.has(cell.state)) {
      cell.ended ??= moment(message.header);
      this.#touch(cell);
    } else if (!cell.mine) {
      this.#finish(cell, cell.failed ? "error" : "ok", moment(message.header));
    } else {
      cell.ended = moment(message.header);
    }
  }

  #takeReply(message: KernelMessage): Effect[] {
    const cell = this.#cells.get(message.parent_header.msg_id ?? "");
    if (cell === undefined) return [];
    const { content } = message;
    cell.count = numeric(content, "execution_count") ?? cell.count;
    const status = text(content, "status");
    const aborted = status === "aborted" || status === "abort";
    // A cell that has begun was not aborted: the kernel, or the server for it, gave up without a reply.
    const end = aborted ? (cell.begun ? "lost" : "aborted") : status;
    this.#finish(cell, end === "ok" || aborted ? (end as CellState) : "error", cell.ended);
    const effects: Effect[] = [];
    for (const payload of Array.isArray(content["payload"]) ? content["payload"] : [])
      if (typeof payload === "object" && payload !== null)
        this.#takePayload(cell, message, payload as Fields, effects);
    return effects;
  }

  #takePayload(
    cell: Cell<O>,
    message: KernelMessage,
    payload: Fields,
    effects: Effect[],
  ): void {
    const source = text(payload, "source");
    if (source === "set_next_input") effects.push({ do: "insert", text: text(payload, "text") });
    if (source !== "page") return;
    const data = object(payload, "data");
    const shown: KernelMessage = {
      ...message,
      channel: "iopub",
      header: { ...message.header, msg_type: "stream" },
      content: { name: "stdout", text: `${text(data, "text/plain")}\n` },
    };
    cell.output.take([shown]);
    this.#touch(cell);
  }

  #takePrompt(message: KernelMessage): Effect[] {
    if (message.header.msg_type !== "input_request") return [];
    const cell = this.#cells.get(message.parent_header.msg_id ?? "");
    const owner = cell ?? this.#addUnseen(message);
    if (ENDS.has(owner.state) || owner.prompt?.id === message.header.msg_id) return [];
    if (owner.prompt !== null) owner.answered.push({ text: owner.prompt.text, answer: null });
    owner.state = "running";
    owner.prompt = owner.asked = {
      id: message.header.msg_id,
      text: text(message.content, "prompt"),
      password: message.content["password"] === true,
      request: message,
    };
    this.#touch(owner);
    // The prompt may have been answered long ago, if this is read again from the log.
    return [{ do: "verify", id: owner.id }];
  }

  #takeSaid(message: KernelMessage): Effect[] {
    const type = message.header.msg_type;
    const parent = message.parent_header;
    if (type === "execute_input") {
      const cell = this.#cells.get(parent.msg_id ?? "") ?? this.#addUnseen(message);
      cell.code ??= text(message.content, "code");
      cell.count = numeric(message.content, "execution_count") ?? cell.count;
      if (!ENDS.has(cell.state)) cell.state = "running";
      cell.begun = true;
      cell.started ??= moment(message.header);
      this.#touch(cell);
      return [];
    }
    if (!SHOWN.has(type) || this.#cleared.has(parent.msg_id ?? "")) return [];
    if (type === "update_display_data") return this.#takeUpdate(message);
    const cell = this.#cells.get(parent.msg_id ?? "");
    if (cell === undefined && parent.msg_type !== "execute_request")
      return this.#takeOrphan(message);
    const owner = cell ?? this.#addUnseen(message);
    if (type === "error") owner.failed = true;
    const display = object(message.content, "transient")["display_id"];
    if (typeof display === "string") {
      const shown = this.#displays.get(display) ?? new Set();
      this.#displays.set(display, shown.add(owner));
    }
    if (owner.output.take([message])) this.#touch(owner);
    return [];
  }

  #takeUpdate(message: KernelMessage): Effect[] {
    const display = object(message.content, "transient")["display_id"];
    const shown = typeof display === "string" ? this.#displays.get(display) : undefined;
    for (const cell of shown ?? []) if (cell.output.take([message])) this.#touch(cell);
    return [];
  }

  /** Output without a request. Without a number it is the service's own notice of a gap. */
  #takeOrphan(message: KernelMessage): Effect[] {
    if (message.header.msg_type === "clear_output") return [];
    const output = this.newOutput();
    output.take([message]);
    this.note("", output);
    if (message.seq !== null) return [];
    return this.open.map(({ id }) => ({ do: "verify", id }));
  }

  /** A cell whose request this console has not seen: another client's, or one before a reload. */
  #addUnseen(message: KernelMessage): Cell<O> {
    const { parent_header: parent, seq } = message;
    return this.#addCell({
      id: parent.msg_id ?? message.header.msg_id,
      code: null,
      mine: parent.session === this.id,
      by: parent.username ?? "",
      state: "running",
      after: (seq ?? 1) - 1,
    });
  }

  #addCell(
    given: Pick<Cell<O>, "id" | "code" | "mine" | "by" | "state" | "after">,
  ): Cell<O> {
    const cell: Cell<O> = {
      ...given,
      kind: "cell",
      count: null,
      started: null,
      ended: null,
      output: this.newOutput(),
      prompt: null,
      asked: null,
      answered: [],
      begun: false,
      failed: false,
      revision: 0,
    };
    this.#cells.set(cell.id, cell);
    this.#unended.add(cell);
    this.#add(cell);
    return cell;
  }

  #finish(cell: Cell<O>, state: CellState, when: number | null): void {
    cell.state = state;
    this.#unended.delete(cell);
    cell.ended ??= when;
    if (cell.prompt !== null) cell.answered.push({ text: cell.prompt.text, answer: null });
    cell.prompt = null;
    this.#touch(cell);
  }

  #add(item: Item<O>): void {
    this.items.push(item);
    this.#touch(item);
    if (this.items.length <= MAX_ITEMS) return;
    const oldest = this.items.find((one) => one.kind === "note" || ENDS.has(one.state));
    if (oldest === undefined) return;
    this.#remove([oldest]);
    this.dropped++;
  }

  #remove(gone: readonly Item<O>[]): void {
    const removed = new Set(gone);
    this.items = this.items.filter((item) => !removed.has(item));
    for (const item of gone) {
      if (item.kind !== "cell") continue;
      this.#cells.delete(item.id);
      this.#unended.delete(item);
      for (const shown of this.#displays.values()) shown.delete(item);
    }
  }

  #touch(item: Item<O>): void {
    item.revision++;
    this.#changed.add(item);
  }
}

const SHOWN = new Set([
  "stream",
  "display_data",
  "execute_result",
  "error",
  "clear_output",
  "update_display_data",
]);

/** A console of one kernel, without its looks: connection, session, history and what is stored. */

import { Connection } from "./connection";
import type { Link, Listener, Place, Surroundings } from "./connection";
import { looksComplete } from "./completeness";
import { History, inputsOf } from "./history";
import { object, text } from "./messages";
import type { Fields, KernelMessage } from "./messages";
import { endOf, isEnd } from "./ends";
import { CellOutput, withinBounds } from "./outputs";
import { toCodePoints, toIndex } from "./positions";
import { Asked, request } from "./requests";
import { parse, serialize } from "./saved";
import type { Pending, Saved } from "./saved";
import { Session } from "./session";
import type { Cell, Effect, Fate } from "./session";

/** What a console needs of the page and its API. */
export interface World extends Surroundings {
  newId(): string;
  /** What became of an execution; null: there is none; undefined: that cannot be told just now. */
  fate(id: string): Promise<Fate | null | undefined>;
  stored(): string | null;
  store(saved: string): void;
  /** Call once, before the next picture of the page is drawn. */
  nextFrame(run: () => void): void;
}

/** What the kernel proposes to put between two UTF-16 indices of the code. */
export interface Completions {
  from: number;
  to: number;
  options: { label: string; type: string }[];
}

/** A kernel may load its completion at the first question. */
const ASK_MILLISECONDS = 60_000;

/** Enter waits so long for the kernel to say whether code is complete. */
const COMPLETE_MILLISECONDS = 700;
const HISTORY_ENTRIES = 500;

/** When the server is asked again what became of code, if it could not tell. */
const VERIFY_AGAIN_MILLISECONDS = 3000;

/** How long a request may stay unheard of before it is asked whether it has arrived. */
export const UNHEARD_MILLISECONDS = 10_000;

export class Console implements Listener {
  readonly session: Session<CellOutput>;
  readonly history = new History();
  readonly connection: Connection;
  link: Link = { is: "connecting" };
  /** Whether the connection has been open once. */
  wasOpen = false;
  /** The kernel's language, as its `kernel_info_reply` names it. */
  language = "";
  draft: string;
  /** Called, at most once a frame, when something is to be drawn anew. */
  onChange: () => void = () => {};
  /** Called with code that is to be edited next: the kernel's proposal, or what was withdrawn. */
  onInsert: (code: string) => void = () => {};

  /** Called when code that was entered here has ended, with words that say how. */
  onEnd: (words: string) => void = () => {};

  readonly #asked = new Asked();
  readonly #entered = new Set<string>();
  #start: Place | null;
  #pending: Pending[];
  /** Whether what the log has of the time before this connection has been read. */
  #caughtUp = false;
  #hasHistory = false;
  #framed = false;
  #unheard: (() => void) | null = null;

  constructor(
    url: string,
    readonly world: World,
  ) {
    const saved = parse(world.stored());
    this.#start = saved?.start ?? null;
    this.#pending = saved?.pending ?? [];
    this.draft = saved?.draft ?? "";
    this.session = new Session(saved?.session ?? world.newId(), () => new CellOutput());
    const address = `${url}?session_id=${encodeURIComponent(this.session.id)}`;
    this.connection = new Connection(address, this.#start, world, this);
  }

  connect(): void {
    this.connection.connect();
  }

  close(): void {
    this.save();
    this.#unheard?.();
    this.#unheard = null;
    this.#caughtUp = false;
    this.connection.close();
    this.#asked.giveUp();
  }

  // What the user does

  /** Run code, or have it wait for the connection. */
  run(code: string): void {
    this.history.add(code);
    const cell = this.session.enter(this.world.newId(), code, this.connection.place?.seq ?? 0);
    this.#entered.add(cell.id);
    this.#flush();
  }

  /** Do not run a cell that waits: its code goes back to where it was typed. */
  withdraw(cell: Cell<CellOutput>): void {
    this.session.withdraw(cell);
    this.onInsert(cell.code ?? "");
    this.#changed();
  }

  /** Answer the open prompt; false if there is no connection, and then the prompt stays. */
  answer(value: string): boolean {
    const asking = this.session.asking;
    if (asking === null) return false;
    const { cell, prompt } = asking;
    const options = { channel: "stdin" as const, parent: prompt.request.header };
    if (!this.#send("input_reply", { value }, options)) return false;
    this.session.answer(cell, value);
    this.#changed();
    return true;
  }

  clear(): void {
    const { place } = this.connection;
    const seq = this.session.clear(place?.seq ?? 0);
    this.#start = place && { ...place, seq };
    this.#changed();
  }

  type(draft: string): void {
    this.draft = draft;
  }

  // What the kernel is asked for

  /** Whether the kernel takes code for complete; by its looks if the kernel does not say in time. */
  async isComplete(code: string): Promise<{ complete: boolean; indent: string }> {
    const asked = { code };
    const busy = this.session.busy;
    const reply = busy ? null : await this.#ask("is_complete_request", asked, COMPLETE_MILLISECONDS);
    const status = text(reply ?? {}, "status", "unknown");
    if (reply === null || status === "unknown") return { complete: looksComplete(code), indent: "" };
    return { complete: status !== "incomplete", indent: text(reply, "indent") };
  }

  /** Completions at an index of the code; null if the kernel does not answer in time. */
  async complete(code: string, index: number): Promise<Completions | null> {
    const asked = { code, cursor_pos: toCodePoints(code, index) };
    const reply = await this.#ask("complete_request", asked, ASK_MILLISECONDS);
    return reply === null ? null : completionsOf(reply, code, index);
  }

  /** What the kernel knows of what is at an index; "" for nothing, null for no answer in time. */
  async inspect(code: string, index: number, detail: 0 | 1): Promise<string | null> {
    const asked = { code, cursor_pos: toCodePoints(code, index), detail_level: detail };
    const reply = await this.#ask("inspect_request", asked, ASK_MILLISECONDS);
    if (reply === null) return null;
    return reply["found"] === true ? text(object(reply, "data"), "text/plain") : "";
  }

  async #ask(type: string, content: Fields, limit: number | null): Promise<Fields | null> {
    const id = this.#send(type, content);
    return id === null ? null : this.#asked.add(id, limit, this.world.schedule);
  }

  #send(
    type: string,
    content: Fields,
    options: Parameters<typeof request>[4] & { id?: string } = {},
  ): string | null {
    const id = options.id ?? this.world.newId();
    const made = request(this.session.id, id, type, content, options);
    return this.connection.send(made) ? id : null;
  }

  // What the connection tells

  onLink(link: Link): void {
    if (link.is !== "open") {
      this.#caughtUp = false;
      this.#asked.giveUp();
      this.session.lost();
    }
    this.link = link;
    this.wasOpen ||= link.is === "open";
    this.#changed();
  }

  onOpen(): void {
    this.#start ??= this.connection.place;
    void this.#catchUp();
  }

  onNewLog(): void {
    this.#start = null;
    this.session.note("The kernel has begun another log. Some output may be missing here.");
  }

  onMessage(message: KernelMessage): void {
    if (this.#asked.settle(message)) return;
    for (const effect of this.session.take(message)) this.#follow(effect);
    this.#changed();
  }

  /** The reply comes behind everything that the log has had before, so then that has been read. */
  async #catchUp(): Promise<void> {
    const info = await this.#ask("kernel_info_request", {}, null);
    if (info === null) return;
    this.language = text(object(info, "language_info"), "name");
    this.#caughtUp = true;
    const known = new Set(this.session.items.map(({ id }) => id));
    for (const { id, code, sent } of this.#pending.splice(0)) {
      if (known.has(id)) continue;
      const cell = this.session.enter(id, code, this.connection.place?.seq ?? 0);
      if (sent) cell.state = "unsure";
    }
    await this.#verifyAll();
    this.#changed();
    if (!this.#hasHistory) await this.#loadHistory();
  }

  async #verifyAll(): Promise<void> {
    for (const { id } of this.session.open) await this.#verify(id, true);
    this.#flush();
    if (!this.#caughtUp || this.session.unsure.length === 0) return;
    this.world.schedule(() => {
      if (this.#caughtUp) void this.#verifyAll();
    }, VERIFY_AGAIN_MILLISECONDS);
  }

  async #loadHistory(): Promise<void> {
    const asked = { output: false, raw: true, hist_access_type: "tail", n: HISTORY_ENTRIES };
    const reply = await this.#ask("history_request", asked, null);
    if (reply === null) return;
    this.#hasHistory = true;
    this.history.load(inputsOf(reply["history"]));
  }

  #follow(effect: Effect): void {
    if (effect.do === "insert") this.onInsert(effect.text);
    else if (this.#caughtUp) void this.#verify(effect.id, false);
  }

  /** Ask the API what became of a cell. `isBack`: the connection was lost, and is back. */
  async #verify(id: string, isBack: boolean): Promise<void> {
    const fate = await this.world.fate(id);
    if (fate === undefined) return;
    this.session.verified(id, fate, isBack);
    this.#changed();
  }

  #flush(): void {
    while (this.#caughtUp) {
      const cell = this.session.next;
      if (cell === null) break;
      const content = {
        code: cell.code ?? "",
        silent: false,
        store_history: true,
        user_expressions: {},
        allow_stdin: true,
        stop_on_error: true,
      };
      if (this.#send("execute_request", content, { id: cell.id }) === null) break;
      this.session.sent(cell);
      this.#watch();
    }
    this.#changed();
  }

  /** Cut the connection if the server has not got what was sent, or cannot be reached at all. */
  #watch(): void {
    this.#unheard ??= this.world.schedule(() => {
      this.#unheard = null;
      const oldest = this.session.open.find((cell) => cell.state === "sent");
      if (oldest === undefined || this.link.is !== "open") return;
      void this.world.fate(oldest.id).then((fate) => {
        if (oldest.state === "sent" && (fate === undefined || fate === null)) this.connection.cut();
        else this.#watch();
      });
    }, UNHEARD_MILLISECONDS);
  }

  // What is drawn and stored

  #changed(): void {
    if (this.#framed) return;
    this.#framed = true;
    this.world.nextFrame(() => {
      this.#framed = false;
      this.#settle();
      this.save();
      this.onChange();
    });
  }

  #settle(): void {
    const changed = [...this.session.changes()];
    for (const { output } of changed) output?.settle();
    for (const item of changed) {
      if (item.kind !== "cell" || !isEnd(item.state) || !this.#entered.delete(item.id)) continue;
      this.onEnd(endOf(item));
    }
    if (!changed.some(({ output }) => output !== null && output.size > 0)) return;
    const { items } = this.session;
    const cut = withinBounds(items.flatMap(({ output }) => output ?? []));
    if (cut.size > 0)
      for (const item of items) if (item.output !== null && cut.has(item.output)) item.revision++;
  }

  save(): void {
    const waiting = this.session.open.concat(this.session.waiting);
    const pending = waiting.flatMap(({ id, code, state }): Pending[] =>
      code === null ? [] : [{ id, code, sent: state !== "waiting" }],
    );
    const saved: Saved = {
      session: this.session.id,
      start: this.#start,
      draft: this.draft,
      pending: [...this.#pending, ...pending],
    };
    this.world.store(serialize(saved));
  }
}

function completionsOf(reply: Fields, code: string, index: number): Completions {
  const matches = Array.isArray(reply["matches"]) ? reply["matches"] : [];
  const types = object(reply, "metadata")["_jupyter_types_experimental"];
  const typeOf = new Map<string, string>();
  for (const entry of Array.isArray(types) ? (types as unknown[]) : []) {
    if (typeof entry !== "object" || entry === null) continue;
    const type = text(entry as Fields, "type");
    if (type !== "<unknown>") typeOf.set(text(entry as Fields, "text"), type);
  }
  const start = reply["cursor_start"];
  const end = reply["cursor_end"];
  return {
    from: typeof start === "number" ? toIndex(code, start) : index,
    to: typeof end === "number" ? toIndex(code, end) : index,
    options: matches
      .filter((match): match is string => typeof match === "string")
      .map((label) => ({ label, type: typeOf.get(label) ?? "" })),
  };
}

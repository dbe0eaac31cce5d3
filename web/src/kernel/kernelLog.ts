/**
 * A kernel's log in the page: what was read of it, as rows, within bounds of memory.
 *
 * Rows that are far from what is seen lose their content, and get it again from the log when they are seen.
 * When the list itself is full, its first rows go, or reading stops, as the reader wants it.
 */

import type { components } from "../api/schema";
import { canDrop, type Row } from "../output/rows";
import type { Said } from "../output/said";
import { Transcript } from "../output/transcript";
import { Follower, type Following } from "./follower";
import type { LogItem } from "./log";

type Page = components["schemas"]["MessagesModel"];

/** How many characters of content the rows may hold together. */
export const MOST_CHARACTERS = 12 * 2 ** 20;
/** How many rows the list may have, and lines, which is about how high it may be. */
export const MOST_ROWS = 120_000;
export const MOST_LINES = 1_000_000;
/** Of who follows the end: each row that comes costs time in proportion to those that there are. */
export const MOST_FOLLOWED = 8000;

/** So many rows around what is seen keep their content; if that is too much, only so many. */
const NEAR = [30, 4];
/** So many rows around what is seen are read again with it. */
const AROUND = 20;
/** So many messages are read again at once. */
const AGAIN = 500;
/** Where "from the end" begins: so many messages before it. */
const TAIL = 1000;
/** So long is waited before the log is asked again after it could not be read. */
const AGAIN_AFTER = 2000;

export type From = "beginning" | "end" | number;

export interface Network {
  fetch(path: string, init?: RequestInit): Promise<Response>;
}

/** The numbers of the first and the last message that a row's content is made of. */
function spanOf(row: Row): readonly [number, number] {
  if (row.kind === "stream") return [row.origin.seq, row.to];
  const number = row.kind === "display" ? row.content : row.from;
  return [number, number];
}

export class KernelLog {
  readonly transcript = new Transcript();
  following: Following = { state: "connecting" };
  /** Before this number there are messages that are not in the list. */
  begin = 0;
  /** The oldest number of the log when the list was begun. */
  first = 1;
  /** Reading has stopped, as the list is full and its beginning is wanted. */
  full = false;
  /** Whether the end of the list is wanted: its first rows go then when it is full. */
  atEnd = false;
  private epoch = "";
  private follower: Follower | null = null;
  private shown: readonly [number, number] = [0, -1];
  private reading = false;
  private stopped = false;

  constructor(
    private readonly path: string,
    private readonly network: Network,
    private readonly changed: () => void,
  ) {}

  /** Begin to read. Does nothing more when the log is gone: `following` tells. */
  async open(from: From): Promise<void> {
    for (;;) {
      const page = await this.page(0, 1).catch(() => null);
      if (this.stopped) return;
      if (page !== null && "status" in page) {
        this.following = { state: "refused", reason: page.message };
        return this.changed();
      }
      if (page !== null) return this.begun(page, from);
      this.following = { state: "waiting" };
      this.changed();
      await new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER));
    }
  }

  stop(): void {
    this.stopped = true;
    this.follower?.stop();
  }

  /** Take in what has arrived. Tells whether anything has changed. */
  tick(): boolean {
    const { follower } = this;
    if (follower === null) return false;
    const before = this.following;
    this.following = follower.following;
    if (!this.makeRoom()) return this.following !== before;
    const items = follower.take();
    if (items.length === 0) return this.following !== before;
    this.put(items);
    this.release();
    return true;
  }

  /** The rows with these indices are seen: what was dropped of them is read again. */
  see(first: number, last: number): void {
    this.shown = [first, last];
    void this.readAgain();
  }

  /** Go on although the list is full: its first rows go. */
  goOn(): void {
    this.atEnd = true;
    this.full = false;
    this.changed();
  }

  /** How many messages of the log are before the list's first row. */
  get earlier(): number {
    return Math.max(0, this.begin - this.first + 1);
  }

  private begun(page: Page, from: From): void {
    this.epoch = page.epoch;
    this.first = page.first;
    const tail = Math.max(page.first - 1, page.last - TAIL);
    // From the very beginning, so that the log tells of what it has lost.
    const after = from === "beginning" ? 0 : from === "end" ? tail : Math.max(0, from);
    this.begin = after;
    this.follower = new Follower(this.path, after, this.epoch, page.last, {
      fetch: (path, init) => this.network.fetch(path, init),
      changed: this.changed,
      // Whoever has begun at another place wants to read what is behind it.
      wantsNewest: () => from === "end" && this.atEnd,
    });
    this.changed();
  }

  private put(items: readonly LogItem[]): void {
    let messages: Said[] = [];
    const flush = (): void => {
      if (messages.length > 0) this.transcript.take(messages);
      messages = [];
    };
    for (const item of items) {
      if (item.type === "message") messages.push(item.message);
      else {
        flush();
        if (item.type === "passed") this.transcript.passed(item.seq, item.messages);
        if (item.type === "gap") this.transcript.gap(item.seq, item.messages, item.bytes);
        if (item.type === "large") this.transcript.large(item.seq, item.what, item.length, item.head);
      }
    }
    flush();
  }

  /** Whether there is room for more rows. */
  private makeRoom(): boolean {
    const { rows } = this.transcript;
    const most = this.atEnd ? MOST_FOLLOWED : MOST_ROWS;
    if (rows.length <= most && this.lines() <= MOST_LINES) {
      this.full = false;
      return true;
    }
    if (!this.atEnd) {
      this.full = true;
      return false;
    }
    const count = Math.max(rows.length - Math.ceil((3 * most) / 4), Math.ceil(rows.length / 4));
    this.begin = Math.max(this.begin, rows[count - 1]?.to ?? 0);
    this.transcript.forget(count);
    return true;
  }

  private lines(): number {
    let lines = 0;
    for (const row of this.transcript.rows) lines += row.kind === "stream" ? row.lines : 3;
    return lines;
  }

  /** Drop content while the rows hold too much: first of those that are farthest from what is seen. */
  private release(): void {
    const { rows } = this.transcript;
    let held = 0;
    for (const row of rows) held += row.size;
    const [first, last] = this.atEnd ? [rows.length, rows.length] : this.shown;
    for (const near of NEAR) {
      for (let index = 0; held > MOST_CHARACTERS && index < first - near; index += 1) {
        held -= this.drop(rows[index]);
      }
      for (let index = rows.length - 1; held > MOST_CHARACTERS && index > last + near; index -= 1) {
        held -= this.drop(rows[index]);
      }
    }
  }

  private drop(row: Row | undefined): number {
    if (row === undefined || row.dropped || row.size === 0 || !canDrop(row)) return 0;
    const { size } = row;
    this.transcript.drop(row);
    return size;
  }

  private async readAgain(): Promise<void> {
    if (this.reading) return;
    this.reading = true;
    try {
      for (let row = this.wanted(); row !== undefined && !this.stopped; row = this.wanted()) {
        const messages = await this.messagesOf(row);
        this.transcript.restore(row, messages);
        this.restoreBy(messages);
        this.release();
        this.changed();
      }
    } catch {
      // The server is away for a while: the rows are tried again.
      setTimeout(() => void (this.stopped || this.readAgain()), AGAIN_AFTER);
    } finally {
      this.reading = false;
    }
  }

  private wanted(): Row | undefined {
    return this.seen(0).find((row) => row.dropped);
  }

  /** The rows that are seen, and so many more before and behind them. */
  private seen(around: number): readonly Row[] {
    const [first, last] = this.shown;
    return this.transcript.rows.slice(Math.max(0, first - around), last + 1 + around);
  }

  /** Restore all rows that are seen, or will be soon, for which these messages are enough. */
  private restoreBy(messages: readonly Said[]): void {
    const from = messages[0]?.seq ?? 0;
    const to = messages.at(-1)?.seq ?? 0;
    for (const row of this.seen(AROUND)) {
      const [first, last] = spanOf(row);
      if (row.dropped && first >= from && last <= to) this.transcript.restore(row, messages);
    }
  }

  private async messagesOf(row: Row): Promise<readonly Said[]> {
    const [first, last] = spanOf(row);
    const messages: Said[] = [];
    for (let after = Math.max(first, last - AGAIN) - 1; after < last; ) {
      const page = await this.page(after, AGAIN);
      if ("status" in page) return messages;
      for (const { seq, ...rest } of page.messages) messages.push({ ...rest, seq: seq ?? null });
      if (page.next <= after) break;
      after = page.next;
    }
    return messages;
  }

  /** A page of the log, or how it was refused. Raises where there is no answer. */
  private async page(after: number, limit: number): Promise<Page | { status: number; message: string }> {
    const epoch = this.epoch === "" ? "" : `&epoch=${encodeURIComponent(this.epoch)}`;
    const response = await this.network.fetch(`${this.path}?after=${after}&limit=${limit}${epoch}`);
    if (response.ok) return (await response.json()) as Page;
    if (response.status >= 500 || response.status === 401 || response.status === 429) {
      throw new Error(response.statusText);
    }
    const said = (await response.json().catch(() => ({}))) as { code?: string; message?: string };
    if (said.code === "unauthorized") throw new Error("The server wants another token.");
    return { status: response.status, message: said.message ?? response.statusText };
  }
}

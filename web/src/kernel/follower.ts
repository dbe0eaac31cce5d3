/**
 * Follows a kernel's log: reads the stream, and goes on behind the last number after each break.
 *
 * What has arrived waits in a queue with a bound until `take` is called, which the page does as often as it
 * draws. While the queue is full nothing is read, so that the server waits, too.
 *
 * Whoever watches the end of a flood cannot read it. So when messages come too fast, and only the end is
 * wanted, the newest are asked for some times a second, and the others are passed over.
 */

import { pause, retryDelay, watchedAttempt } from "../api/reach";
import { Flood, type NewestPage, newestOf } from "./flood";
import { itemOf, type LogItem, placeOf } from "./log";
import { LineSplitter, LONGEST_LINE } from "./lineSplitter";

export type Following =
  | { readonly state: "connecting" | "live" | "passing" | "waiting" | "stopped" }
  | { readonly state: "ended" | "refused"; readonly reason: string };

export interface Source {
  /** A response of the API, with the token. */
  fetch(path: string, init: RequestInit): Promise<Response>;
  /** Called when something has arrived, or when the state has changed. */
  changed(): void;
  /** Whether the end of the log is wanted, and what comes too fast may be passed over. */
  wantsNewest(): boolean;
}

/** So often the newest messages are asked for in a flood, in milliseconds. */
export const PASSING_PERIOD = 250;

/** So many characters of the stream may wait for the page. */
export const MOST_WAITING = 2 * 2 ** 20;

type Attempt = ReturnType<typeof watchedAttempt>;

type End = "broken" | "overtaken" | "for good";

export class Follower {
  following: Following = { state: "connecting" };
  /** How many times the stream broke and was opened again. */
  breaks = 0;
  private waiting: LogItem[] = [];
  private lastReason = "";
  private characters = 0;
  private room: (() => void) | null = null;
  private readonly aborter = new AbortController();
  private readonly flood: Flood;

  /** Messages up to number `known` were there before: that they come at once is no flood. */
  constructor(
    private readonly path: string,
    private after: number,
    private epoch: string,
    known: number,
    private readonly source: Source,
  ) {
    this.flood = new Flood(known);
    void this.run();
  }

  /** What has arrived since the last call. */
  take(): LogItem[] {
    const items = this.waiting;
    this.waiting = [];
    this.characters = 0;
    this.room?.();
    this.room = null;
    return items;
  }

  stop(): void {
    this.following = { state: "stopped" };
    this.aborter.abort();
    this.take();
  }

  private set(following: Following): void {
    if (this.following.state === "stopped") return;
    this.following = following;
    this.source.changed();
  }

  private get stopped(): boolean {
    return this.aborter.signal.aborted;
  }

  private async run(): Promise<void> {
    for (let attempt = 0; !this.stopped; attempt += 1) {
      const place = this.after;
      try {
        if (this.breaks > 0) await this.pass();
        for (;;) {
          const ended = await this.once();
          if (ended === "for good") return;
          if (ended === "broken") break;
          await this.pass();
        }
      } catch {
        // The connection broke, or was silent for too long. Whatever was read counts.
      }
      if (this.after > place) attempt = 0;
      if (this.stopped) return;
      this.breaks += 1;
      this.set({ state: "waiting" });
      await pause(retryDelay(attempt), this.aborter.signal);
    }
  }

  /** Read one stream to its end. Tells how it has ended. */
  private async once(): Promise<End> {
    const silence = watchedAttempt(this.aborter.signal);
    try {
      const query = `after=${this.after}&epoch=${encodeURIComponent(this.epoch)}`;
      const response = await this.source.fetch(`${this.path}?${query}`, {
        headers: { Accept: "application/x-ndjson" },
        cache: "no-store",
        signal: silence.signal,
      });
      if (!response.ok || response.body === null) return await this.refused(response);
      this.set({ state: "live" });
      return await this.read(response.body, silence);
    } finally {
      silence.end();
    }
  }

  private async refused(response: Response): Promise<End> {
    if (response.status >= 500 || response.status === 429 || response.status === 401) return "broken";
    const said = (await response.json().catch(() => ({}))) as { code?: string; message?: string };
    if (said.code === "unauthorized") return "broken"; // the page asks for another token
    // The end of a kernel that is gone was told in the stream before.
    const gone = response.status === 404 && this.lastReason !== "";
    const reason = gone ? this.lastReason : (said.message ?? response.statusText);
    this.set({ state: gone ? "ended" : "refused", reason });
    return "for good";
  }

  private async read(body: ReadableStream<Uint8Array>, silence: Attempt): Promise<End> {
    const splitter = new LineSplitter();
    const decoder = new TextDecoder();
    const reader = new Pieces(body);
    let heard = performance.now();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "broken";
        // A timer for each piece of a flood would cost more than the piece.
        if (performance.now() - heard > 1000) {
          heard = performance.now();
          silence.heard();
        }
        const text = decoder.decode(value, { stream: true });
        for (const line of splitter.push(text)) {
          const item = itemOf(line);
          if (item === null) continue;
          if (item.type === "closing") this.lastReason = item.reason;
          else this.put(item, "whole" in line ? line.whole.length : line.head.length);
        }
        if (this.characters > 0) this.source.changed();
        const full = this.characters > MOST_WAITING;
        if (this.flood.isToo(performance.now(), full) && this.source.wantsNewest()) return "overtaken";
        if (full) {
          silence.rest();
          await this.taken();
          silence.heard();
        }
      }
    } finally {
      reader.cancel();
    }
  }

  /** Resolves when what waits has been taken. */
  private taken(): Promise<void> {
    return new Promise((resolve) => {
      this.room = resolve;
    });
  }

  /**
   * Ask for the newest messages again and again, until there are so few that nothing has to be passed
   * over. Raises where there is no answer, and leaves a refusal to the stream, which is asked next.
   */
  private async pass(): Promise<void> {
    for (let from = this.after; !this.stopped && this.source.wantsNewest(); ) {
      const page = await this.newest(from);
      if (page === null) break;
      for (const item of newestOf(page, this.after, from)) this.put(item, this.flood.average);
      if (this.characters > 0) this.source.changed();
      if (page.next >= page.last) break;
      if (this.following.state !== "passing") this.set({ state: "passing" });
      from = Math.max(page.next, page.last - this.flood.most);
      if (this.characters > 0) await this.taken();
      await pause(PASSING_PERIOD, this.aborter.signal);
    }
    this.flood.begin(performance.now());
  }

  /** The messages behind a number, as many as make sense; null if they cannot be had like this. */
  private async newest(after: number): Promise<NewestPage | null> {
    const attempt = watchedAttempt(this.aborter.signal);
    try {
      const query = `after=${after}&limit=${this.flood.most}&epoch=${encodeURIComponent(this.epoch)}`;
      const response = await this.source.fetch(`${this.path}?${query}`, { signal: attempt.signal });
      // One that is too large is for the stream, which looks at its head alone.
      if (!response.ok || Number(response.headers.get("content-length")) > LONGEST_LINE) {
        await response.body?.cancel();
        return null;
      }
      const text = await response.text();
      const page = JSON.parse(text) as NewestPage;
      this.flood.measure(page.messages.length, text.length);
      return page;
    } finally {
      attempt.end();
    }
  }

  private put(item: LogItem, characters: number): void {
    const place = placeOf(item);
    if (place !== null && place <= this.after && item.type !== "gap") return;
    if (place !== null) this.after = Math.max(place, this.after);
    if (item.type === "message") this.flood.note(item.message.seq ?? 0, characters);
    this.waiting.push(item);
    this.characters += characters;
  }
}

/** The bytes of a stream. Where the browser can, they come in one buffer, used over and over: a flood
 * would otherwise leave hundreds of megabytes to be collected. */
class Pieces {
  private readonly reused: ReadableStreamBYOBReader | null;
  private readonly plain: ReadableStreamDefaultReader<Uint8Array> | null;
  private buffer: ArrayBufferLike = new ArrayBuffer(65_536);

  constructor(body: ReadableStream<Uint8Array>) {
    this.reused = byob(body);
    this.plain = this.reused === null ? body.getReader() : null;
  }

  /** The next bytes, which are valid until the next call. */
  async read(): Promise<{ done: boolean; value?: Uint8Array | undefined }> {
    if (this.plain !== null) return this.plain.read();
    if (this.reused === null) return { done: true };
    const piece = await this.reused.read(new Uint8Array(this.buffer as ArrayBuffer));
    if (piece.value !== undefined) this.buffer = piece.value.buffer;
    return piece;
  }

  cancel(): void {
    (this.reused ?? this.plain)?.cancel().catch(() => undefined);
  }
}

function byob(body: ReadableStream<Uint8Array>): ReadableStreamBYOBReader | null {
  try {
    return body.getReader({ mode: "byob" });
  } catch {
    return null;
  }
}

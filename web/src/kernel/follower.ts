/**
 * Follows a kernel's log: reads the stream, and goes on behind the last number after each break.
 *
 * What has arrived waits in a queue with a bound until `take` is called, which the page does as often as it
 * draws. While the queue is full nothing is read, so that the server waits, too.
 */

import { pause, retryDelay, watchedAttempt } from "../api/reach";
import { itemOf, type LogItem, placeOf } from "./log";
import { LineSplitter } from "./lineSplitter";

export type Following =
  | { readonly state: "connecting" | "live" | "waiting" | "stopped" }
  | { readonly state: "ended" | "refused"; readonly reason: string };

export interface Source {
  /** A response of the API, with the token. */
  fetch(path: string, init: RequestInit): Promise<Response>;
  /** Called when something has arrived, or when the state has changed. */
  changed(): void;
}

/** So many characters of the stream may wait for the page. */
export const MOST_WAITING = 2 * 2 ** 20;

type Attempt = ReturnType<typeof watchedAttempt>;

export class Follower {
  following: Following = { state: "connecting" };
  /** How many times the stream broke and was opened again. */
  breaks = 0;
  private waiting: LogItem[] = [];
  private lastReason = "";
  private characters = 0;
  private room: (() => void) | null = null;
  private readonly aborter = new AbortController();

  constructor(
    private readonly path: string,
    private after: number,
    private epoch: string,
    private readonly source: Source,
  ) {
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
        if (await this.once()) return;
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

  /** Read one stream to its end. Tells whether there is nothing more to be read, ever. */
  private async once(): Promise<boolean> {
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

  private async refused(response: Response): Promise<boolean> {
    if (response.status >= 500 || response.status === 429 || response.status === 401) return false;
    const said = (await response.json().catch(() => ({}))) as { code?: string; message?: string };
    if (said.code === "unauthorized") return false; // the page asks for another token
    // The end of a kernel that is gone was told in the stream before.
    const gone = response.status === 404 && this.lastReason !== "";
    const reason = gone ? this.lastReason : (said.message ?? response.statusText);
    this.set({ state: gone ? "ended" : "refused", reason });
    return true;
  }

  private async read(body: ReadableStream<Uint8Array>, silence: Attempt): Promise<boolean> {
    const splitter = new LineSplitter();
    const decoder = new TextDecoder();
    const reader = new Pieces(body);
    let heard = performance.now();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return false;
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
        if (this.characters > MOST_WAITING) {
          silence.rest();
          await new Promise<void>((resolve) => {
            this.room = resolve;
          });
          silence.heard();
        }
      }
    } finally {
      reader.cancel();
    }
  }

  private put(item: LogItem, characters: number): void {
    const place = placeOf(item);
    if (place !== null && place <= this.after && item.type !== "gap") return;
    if (place !== null) this.after = Math.max(place, this.after);
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

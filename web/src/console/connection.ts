/**
 * The connection to a kernel's channels. It comes back by itself after every loss, and hands on each
 * message of the kernel's log once and in order, whatever was lost on the way.
 *
 * Each message carries its number in the log. The connection knows the number of the last message
 * that it has handed on, and asks for those behind it when it comes back. So it does not matter how
 * far the last connection got, or whether the server is another one by now: the log is the same.
 */

import { decode, encode, FrameError, subprotocols } from "./frames";
import type { KernelMessage, Request } from "./messages";

/** A place in a kernel's log: which log, and the number of the last message that was handed on. */
export interface Place {
  epoch: string;
  seq: number;
}

/** What the server tells of a place, before a WebSocket is opened there. */
export type Look =
  | { is: "there"; epoch: string; last: number }
  | { is: "stale" } // the kernel has another log by now
  | { is: "gone" } // there is no such kernel
  | { is: "refused"; code: string } // the token, or what it allows
  | { is: "unreachable" };

export type Over = "gone" | "replaced" | "refused" | "forbidden";

export type Link =
  | { is: "connecting" }
  | { is: "open" }
  | { is: "lost"; since: number }
  | { is: "over"; why: Over; reason?: string };

/** A WebSocket, as far as the connection uses one. */
export interface Socket {
  binaryType: string;
  readonly readyState: number;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason?: string }) => void) | null;
  send(data: ArrayBuffer): void;
  close(): void;
}

/** What a connection needs of the world around it. */
export interface Surroundings {
  openSocket(url: string, protocols: string[]): Socket;
  token(): string;
  /** Look at a place, or at the end of the log if there is none. It is bounded in time. */
  look(place: Place | null): Promise<Look>;
  /** Whether the user may execute code in the kernel; null if that cannot be told just now. */
  mayExecute(): Promise<boolean | null>;
  schedule(run: () => void, milliseconds: number): () => void;
  now(): number;
  random(): number;
}

export interface Listener {
  onLink(link: Link): void;
  /** The WebSocket is open, and has greeted: requests may be sent. */
  onOpen(): void;
  onMessage(message: KernelMessage): void;
  /** The kernel has begun another log: messages between the two are lost. */
  onNewLog(): void;
}

const OPEN = 1;
const OPEN_SECONDS = 15;
const LONGEST_PAUSE = 8000;
const FIRST_PAUSE = 250;

const CLOSED_REPLACED = 1000;
const CLOSED_GONE = 4404;

/** After so many handshakes that failed one after the other, it is asked whether they may succeed. */
const HANDSHAKES = 2;

export class Connection {
  /** How far the log has been handed on; null before the first look at it. */
  place: Place | null;
  #link: Link = { is: "connecting" };
  #socket: Socket | null = null;
  #greeted = false;
  #attempts = 0;
  #failedHandshakes = 0;
  #cancel: (() => void) | null = null;
  /** Counts the attempts, so that the answer to an earlier one is known as such. */
  #turn = 0;

  constructor(
    readonly url: string,
    place: Place | null,
    readonly surroundings: Surroundings,
    readonly listener: Listener,
  ) {
    this.place = place;
  }

  get link(): Link {
    return this.#link;
  }

  /** Connect now: for the first time, or without waiting for the pause to end. */
  connect(): void {
    if (this.#link.is === "open") return;
    this.#drop();
    if (this.#link.is === "over") this.#set({ is: "connecting" });
    this.#attempts++;
    void this.#attempt(++this.#turn);
  }

  /** Give the connection up for good. */
  close(): void {
    this.#drop();
    this.#turn++;
  }

  /** Cut the connection because the server does not answer on it, and come back. */
  cut(): void {
    if (this.#link.is === "open") this.#lose();
  }

  /** Send a request; false if there is no connection, and then nothing was sent. */
  send(request: Request): boolean {
    const socket = this.#socket;
    if (this.#link.is !== "open" || socket === null || socket.readyState !== OPEN) return false;
    socket.send(encode(request));
    return true;
  }

  async #attempt(turn: number): Promise<void> {
    const found = await this.surroundings.look(this.place);
    if (turn !== this.#turn) return;
    switch (found.is) {
      case "there":
        this.place ??= { epoch: found.epoch, seq: found.last };
        this.#open(turn, this.place);
        return;
      case "stale":
        this.place = null;
        this.listener.onNewLog();
        this.connect();
        return;
      case "gone":
        this.#end("gone");
        return;
      case "refused":
        this.#end(found.code === "unauthorized" ? "refused" : "forbidden");
        return;
      case "unreachable":
        this.#lose();
    }
  }

  #open(turn: number, place: Place): void {
    const query = `&after=${place.seq}&epoch=${encodeURIComponent(place.epoch)}`;
    const protocols = subprotocols(this.surroundings.token());
    let socket: Socket;
    try {
      socket = this.surroundings.openSocket(this.url + query, protocols);
    } catch {
      this.#lose(); // the token has letters that no subprotocol may have
      return;
    }
    this.#socket = socket;
    this.#greeted = false;
    socket.binaryType = "arraybuffer";
    this.#cancel = this.surroundings.schedule(() => this.#fail(turn), 1000 * OPEN_SECONDS);
    socket.onmessage = ({ data }) => {
      if (turn === this.#turn) this.#take(data);
    };
    socket.onclose = ({ code, reason }) => {
      if (turn !== this.#turn) return;
      this.#socket = null;
      if (code === CLOSED_GONE) this.#end("gone", reason ?? "");
      else if (code === CLOSED_REPLACED && this.#greeted) this.#end("replaced");
      else if (this.#greeted) this.#lose();
      else this.#fail(turn);
    };
  }

  #take(data: unknown): void {
    let message: KernelMessage;
    try {
      message = decode(data as ArrayBuffer);
    } catch (error) {
      if (error instanceof FrameError || error instanceof TypeError) return;
      throw error;
    }
    if (message.seq !== null && this.place !== null) {
      if (message.seq <= this.place.seq) return; // it has been handed on before
      this.place = { ...this.place, seq: message.seq };
    }
    const isFirst = !this.#greeted;
    this.#greeted = true;
    if (isFirst) {
      this.#cancel?.();
      this.#cancel = null;
      this.#attempts = 0;
      this.#failedHandshakes = 0;
      this.#set({ is: "open" });
    }
    this.listener.onMessage(message);
    if (isFirst) this.listener.onOpen();
  }

  /** A handshake has failed although the server answers: perhaps it never will succeed. */
  #fail(turn: number): void {
    this.#drop();
    this.#failedHandshakes++;
    if (this.#failedHandshakes < HANDSHAKES) {
      this.#lose();
      return;
    }
    void this.surroundings.mayExecute().then((may) => {
      if (turn !== this.#turn) return;
      if (may === false) this.#end("forbidden");
      else this.#lose();
    });
  }

  #lose(): void {
    this.#drop();
    this.#turn++;
    const since = this.#link.is === "lost" ? this.#link.since : this.surroundings.now();
    this.#set({ is: "lost", since });
    const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** Math.min(this.#attempts, 6));
    const some = pause * (0.5 + 0.5 * this.surroundings.random());
    this.#cancel = this.surroundings.schedule(() => this.connect(), some);
  }

  #end(why: Over, reason = ""): void {
    this.#drop();
    this.#turn++;
    this.#set({ is: "over", why, ...(reason === "" ? {} : { reason }) });
  }

  #drop(): void {
    this.#cancel?.();
    this.#cancel = null;
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onmessage = socket.onclose = socket.onopen = null;
    socket.close();
  }

  #set(link: Link): void {
    this.#link = link;
    this.listener.onLink(link);
  }
}

/** When messages come faster than they are worth reading, and what is read of them then. */

import type { LogItem } from "./log";
import { type Event, saidOf } from "./log";

/** More messages or characters than these in `WINDOW` milliseconds are a flood. */
export const FLOOD_MESSAGES = 2000;
export const FLOOD_CHARACTERS = 2 * 2 ** 20;
export const WINDOW = 500;

/** Of a flood at most so many messages are read at once, and about so many characters. */
export const NEWEST = 500;
const NEWEST_CHARACTERS = 512 * 1024;
/** So many in any case, for what is large is not always so. */
const FEWEST = 10;

/** A page of the log. */
export interface NewestPage {
  readonly next: number;
  readonly last: number;
  readonly gap: { readonly seq: number; readonly messages: number; readonly bytes: number } | null;
  readonly messages: readonly Event[];
}

/** Tells a flood by what has come lately. */
export class Flood {
  /** How many characters a message has, as it seems. */
  average = 500;
  private messages = 0;
  private characters = 0;
  private began = 0;

  /** Messages up to number `known` count for nothing. */
  constructor(private readonly known: number) {}

  note(seq: number, characters: number): void {
    if (seq <= this.known) return;
    this.messages += 1;
    this.characters += characters;
  }

  /** Whether too much has come, or what has come is not taken as fast (`full`). */
  isToo(now: number, full: boolean): boolean {
    if (this.messages > FLOOD_MESSAGES || this.characters > FLOOD_CHARACTERS || (full && this.messages > 0)) {
      this.measure(this.messages, this.characters);
      return true;
    }
    if (now - this.began > WINDOW) this.begin(now);
    return false;
  }

  /** Count anew. */
  begin(now: number): void {
    this.messages = this.characters = 0;
    this.began = now;
  }

  measure(messages: number, characters: number): void {
    if (messages > 0) this.average = characters / messages;
  }

  /** How many messages are read at once. */
  get most(): number {
    return Math.max(FEWEST, Math.min(NEWEST, Math.floor(NEWEST_CHARACTERS / this.average)));
  }
}

/** The items of a page that was asked for behind `from`, where `after` is the last number that was read. */
export function newestOf(page: NewestPage, after: number, from: number): LogItem[] {
  const items: LogItem[] = [];
  if (from > after) items.push({ type: "passed", seq: from, messages: from - after });
  if (page.gap !== null) items.push({ type: "gap", ...page.gap });
  for (const event of page.messages) {
    const seq = typeof event.seq === "number" ? event.seq : 0;
    items.push({ type: "message", message: saidOf(event, seq) });
  }
  return items;
}

/** What a console keeps in the tab's storage, so that a reload loses nothing. */

import type { Place } from "./connection";

/** Code that was entered and has not ended; `sent` if the kernel may have it. */
export interface Pending {
  id: string;
  code: string;
  sent: boolean;
}

export interface Saved {
  /** The console's session at the kernel. */
  session: string;
  /** Where the console begins in the kernel's log; null before it has connected. */
  start: Place | null;
  /** What is typed and not entered yet. */
  draft: string;
  pending: Pending[];
}

/** Larger texts are not stored: the browser has some 5 MB for all of the page. */
const MAX_CHARACTERS = 1_000_000;

export function serialize(saved: Saved): string {
  let left = MAX_CHARACTERS;
  const fits = (code: string): boolean => (left -= code.length) >= 0;
  const draft = fits(saved.draft) ? saved.draft : "";
  const pending = saved.pending.filter(({ code }) => fits(code));
  return JSON.stringify({ ...saved, draft, pending });
}

/** What was stored; null for what no console of this version has stored. */
export function parse(stored: string | null): Saved | null {
  let found: unknown;
  try {
    found = JSON.parse(stored ?? "null");
  } catch {
    return null;
  }
  if (!isObject(found) || typeof found["session"] !== "string") return null;
  const { session, start, draft, pending } = found;
  return {
    session,
    start: isPlace(start) ? { epoch: start.epoch, seq: start.seq } : null,
    draft: typeof draft === "string" ? draft : "",
    pending: Array.isArray(pending) ? pending.filter(isPending) : [],
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function isPlace(value: unknown): value is Place {
  return isObject(value) && typeof value["epoch"] === "string" && Number.isInteger(value["seq"]);
}

function isPending(value: unknown): value is Pending {
  return isObject(value) && typeof value["id"] === "string" && typeof value["code"] === "string";
}

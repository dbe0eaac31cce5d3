// The token: taken once from the address, kept for this tab alone, and removed from the address, so
// that it is in no bookmark, no history and no screenshot.

import { batch, signal } from "@preact/signals";

import { readStored, store, tabStorage } from "./storage";

const KEY = "kernelkeep.token";

function take(): string {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given !== null) {
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
    if (given !== "") store(tabStorage(), KEY, given);
  }
  return given || (readStored(tabStorage(), KEY) ?? "");
}

/** The token that requests are made with; empty for none. */
export const token = signal(take());

/**
 * Whether the server wants a token: the `first`, or another than the one that it has `refused` or that
 * has `ended`. Nothing is asked of the server then until there is another one.
 */
export const tokenWanted = signal<"" | "first" | "refused" | "ended">("");

/** Whether the prompt for a token was closed without one; a banner leads back to it. */
export const promptClosed = signal(false);

let accepted: string | null = null;

/** Counts the tokens that were given to the prompt: the same one, given again, is tried again. */
export const tokenTurn = signal(0);

export function useToken(next: string): void {
  store(tabStorage(), KEY, next === "" ? null : next);
  batch(() => {
    tokenWanted.value = "";
    promptClosed.value = false;
    token.value = next;
    tokenTurn.value += 1;
  });
}

/** The server has answered a request with this token. */
export function noteAccepted(shown: string): void {
  accepted = shown;
}

/** The server takes this token no longer, as an answer or the close code 4401 of a WebSocket says. */
export function noteRefused(shown: string): void {
  if (token.peek() !== shown || tokenWanted.peek() !== "") return;
  tokenWanted.value = accepted === shown ? "ended" : shown === "" ? "first" : "refused";
}

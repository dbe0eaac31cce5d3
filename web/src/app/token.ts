// The token: taken once from the address, kept for this tab alone, and removed from the address, so
// that it is in no bookmark, no history and no screenshot.

import { signal } from "@preact/signals";

import { readStored, store } from "./storage";

const KEY = "kernelkeep.token";

function tabStorage(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

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

/** Whether the server wants a token, or another one than it was shown. The prompt is open then. */
export const tokenWanted = signal<"" | "first" | "refused" | "ended">("");

export function useToken(next: string): void {
  token.value = next;
  store(tabStorage(), KEY, next === "" ? null : next);
  tokenWanted.value = "";
}

// What the browser keeps for the page. It may refuse to keep anything; the page works without.

/** What is kept for this tab alone; null if the browser keeps nothing. */
export function tabStorage(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

export function readStored(storage: Storage | null, key: string): string | null {
  try {
    return storage?.getItem(key) ?? null;
  } catch {
    return null;
  }
}

export function store(storage: Storage | null, key: string, value: string | null): void {
  try {
    if (value === null) storage?.removeItem(key);
    else storage?.setItem(key, value);
  } catch {
    // There is no room, or the browser keeps nothing: this visit has the value all the same.
  }
}

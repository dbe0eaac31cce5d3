/** What was entered before, and the way up and down in it. */

export const MAX_ENTRIES = 2000;

export class History {
  #entries: string[] = [];
  /** Where the user is; the length of the entries is what is being typed. */
  #at = 0;
  #draft = "";

  /** Put what the kernel remembers before what was entered here. */
  load(entries: readonly string[]): void {
    this.#entries = [...entries, ...this.#entries].filter(isNew).slice(-MAX_ENTRIES);
    this.leave();
  }

  /** Note what was entered, and end the way through the history. */
  add(code: string): void {
    if (code.trim() && this.#entries[this.#entries.length - 1] !== code) this.#entries.push(code);
    if (this.#entries.length > MAX_ENTRIES) this.#entries.shift();
    this.leave();
  }

  /** End the way through the history: what is in the editor now is what is being typed. */
  leave(): void {
    this.#at = this.#entries.length;
    this.#draft = "";
  }

  /** The entry before, of those that begin with what is being typed; null if there is none. */
  older(current: string): string | null {
    if (this.#at === this.#entries.length) this.#draft = current;
    for (let index = this.#at - 1; index >= 0; index--) {
      const entry = this.#entries[index] ?? "";
      if (entry.startsWith(this.#draft) && entry !== current) {
        this.#at = index;
        return entry;
      }
    }
    return null;
  }

  /** The entry after, and in the end what was being typed; null if the user is there already. */
  newer(current: string): string | null {
    if (this.#at === this.#entries.length) return null;
    for (let index = this.#at + 1; index < this.#entries.length; index++) {
      const entry = this.#entries[index] ?? "";
      if (entry.startsWith(this.#draft) && entry !== current) {
        this.#at = index;
        return entry;
      }
    }
    const draft = this.#draft;
    this.leave();
    return draft;
  }
}

function isNew(entry: string, index: number, entries: readonly string[]): boolean {
  return entry.trim() !== "" && entry !== entries[index - 1];
}

/** The inputs of a `history_reply`: a list of [session, line, input] or [session, line, [input, output]]. */
export function inputsOf(history: unknown): string[] {
  if (!Array.isArray(history)) return [];
  const inputs = history.map((entry: unknown) => {
    const input: unknown = Array.isArray(entry) ? entry[2] : null;
    return Array.isArray(input) ? (input[0] as unknown) : input;
  });
  return inputs.filter((input): input is string => typeof input === "string");
}

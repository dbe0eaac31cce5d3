/** What the cells have put out, within bounds: the newest rows of each, and of all of them. */

import type { Row } from "../output/rows";
import { Transcript } from "../output/transcript";
import type { KernelMessage } from "./messages";
import type { Output } from "./session";

/** Rows and characters that one cell shows at most. The kernel's output view has all. */
export const MAX_ROWS = 200;
export const MAX_CHARACTERS = 1_000_000;

/** Characters that all cells together keep in memory. */
export const MAX_TOTAL = 16_000_000;

export class CellOutput implements Output {
  /** How many of the oldest rows are not shown any more. */
  cut = 0;
  /** How many characters the rows hold. */
  size = 0;
  readonly #transcript = new Transcript();
  #taken: KernelMessage[] = [];

  /** Take messages; they become rows at the next `settle`, all that came until then at once. */
  take(messages: readonly KernelMessage[]): boolean {
    this.#taken.push(...messages);
    return true;
  }

  get rows(): readonly Row[] {
    return this.#transcript.rows;
  }

  settle(): void {
    if (this.#taken.length === 0) return;
    const taken = this.#taken;
    this.#taken = [];
    this.#transcript.take(taken);
    this.#measure();
    let rows = Math.max(0, this.rows.length - MAX_ROWS);
    for (let size = this.size; size > MAX_CHARACTERS && rows < this.rows.length - 1; rows++)
      size -= this.rows[rows]?.size ?? 0;
    this.forget(rows);
  }

  /** Forget the oldest rows. */
  forget(rows: number): void {
    if (rows === 0) return;
    this.cut += this.#transcript.forget(rows);
    this.#measure();
  }

  #measure(): void {
    this.size = this.rows.reduce((size, row) => size + row.size, 0);
  }
}

/**
 * Have old outputs forget their rows, the oldest first, until all hold no more than `MAX_TOTAL`
 * characters. The newest one is left as it is. Returns those that have forgotten something.
 */
export function withinBounds(outputs: readonly CellOutput[], most = MAX_TOTAL): Set<CellOutput> {
  const changed = new Set<CellOutput>();
  let total = outputs.reduce((size, output) => size + output.size, 0);
  for (const output of outputs.slice(0, -1)) {
    if (total <= most) break;
    if (output.size === 0) continue;
    total -= output.size;
    output.forget(output.rows.length);
    changed.add(output);
  }
  return changed;
}

// Which kernels are selected, and what is done with them.

import { signal } from "@preact/signals";

import { act, type Action } from "./actions";
import { nameOf } from "./row";
import { names, rows } from "./store";

export const selected = signal<ReadonlySet<string>>(new Set());

/** How the kernels that are meant are called in a sentence. */
function called(ids: readonly string[]): string {
  const [only] = ids;
  const row = ids.length === 1 && only !== undefined ? rows.peek().get(only) : undefined;
  return row === undefined ? `${ids.length} kernels` : nameOf(row, names.peek());
}

export function doWith(action: Action, ids: readonly string[]): void {
  act(action, ids, called(ids));
}

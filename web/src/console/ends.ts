/** How code has ended, in words for who does not see it. */

import { duration } from "../components/format";
import type { Cell, CellState } from "./session";

const WORDS: Partial<Record<CellState, string>> = {
  ok: "has ended",
  error: "has failed",
  aborted: "was not run",
  cancelled: "was cancelled",
  lost: "ran; how it ended is not known",
};

export function isEnd(state: CellState): boolean {
  return state in WORDS;
}

/** A sentence for a cell that has ended. */
export function endOf({ state, count, started, ended }: Omit<Cell, "output">): string {
  const name = count === null ? "The code" : `In[${count}]`;
  const seconds = started !== null && ended !== null ? Math.max(0, ended - started) / 1000 : 0;
  const after = seconds >= 1 && state !== "aborted" && state !== "lost" ? ` after ${duration(seconds)}` : "";
  return `${name} ${WORDS[state] ?? state}${after}.`;
}

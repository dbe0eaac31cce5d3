// The last ten minutes of each kernel's memory and processors: what the server remembers, asked for
// once when a row is first seen, and what the stream has told since.

import { signal } from "@preact/signals";

import { api } from "../api/client";

export interface Point {
  readonly at: number;
  readonly cpu: number | null;
  readonly memory: number | null;
}

export const KEPT_MS = 600_000;
const ASKED_AT_ONCE = 3;

const series = new Map<string, Point[]>();
const asked = new Set<string>();
const waiting: string[] = [];
let asking = 0;

/** Counts what was added: who draws reads it. */
export const seriesVersion = signal(0);

export function pointsOf(id: string): readonly Point[] {
  return series.get(id) ?? [];
}

export function addPoint(id: string, at: number, cpu: number | null, memory: number | null): void {
  const points = series.get(id) ?? [];
  const last = points.at(-1);
  if (last !== undefined && last.at >= at) return;
  series.set(id, [...points.filter((point) => point.at >= at - KEPT_MS), { at, cpu, memory }]);
  seriesVersion.value += 1;
}

export function forgetSeries(id: string): void {
  series.delete(id);
  asked.delete(id);
}

/** Have the past of a kernel that is seen now; a row that was seen before has it already. */
export function wantPast(id: string): void {
  if (asked.has(id)) return;
  asked.add(id);
  waiting.push(id);
  askNext();
}

function askNext(): void {
  while (asking < ASKED_AT_ONCE) {
    const id = waiting.pop(); // the row that was seen last is the likeliest to be seen still
    if (id === undefined) return;
    asking += 1;
    void ask(id).finally(() => {
      asking -= 1;
      askNext();
    });
  }
}

async function ask(id: string): Promise<void> {
  try {
    const { data } = await api.GET("/api/kernels/{kernel_id}/usage", {
      params: { path: { kernel_id: id }, query: { history: true, no_track_activity: "1" } as never },
    });
    const past = (data?.history ?? []).map(({ at, cpu, memory }) => ({
      at: Date.parse(at), cpu, memory,
    }));
    const since = past.at(-1)?.at ?? 0;
    series.set(id, [...past, ...pointsOf(id).filter((point) => point.at > since)]);
    seriesVersion.value += 1;
  } catch {
    asked.delete(id); // it is asked for again when the row is next seen
  }
}

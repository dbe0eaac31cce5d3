// All kernels of the caller, live: one stream of the overview for the whole page, which is begun again
// whenever it ends. Each stream tells everything first, so nothing is missed in between.

import { effect, signal } from "@preact/signals";

import { api, TokenWanted } from "../api/client";
import { allows, me } from "../api/me";
import { StreamRefused, streamLines } from "../api/lines";
import { markUnreachable, pause, retryDelay, watchedAttempt } from "../api/reach";
import { readStored, store } from "../app/storage";
import { tabStorage, token, tokenTurn, tokenWanted } from "../app/token";
import { goneRow, type KernelEvent, type Names, type OverviewEvent, type Row, rowOf } from "./row";
import { addPoint, forgetSeries } from "./series";

/** `waiting`: nothing is known yet; `refused`: this identity may not see kernels. */
export const standing = signal<"waiting" | "live" | "refused">("waiting");
export const rows = signal<ReadonlyMap<string, Row>>(new Map());
export const names = signal<Names>({ specs: new Map(), sessions: new Map() });

const MOST_GONE = 200;
const FORGOTTEN = "kernelkeep.forgotten";
const NAMES_MS = 15_000;

/** The server tells of kernels that have ended each time that it is asked: these were seen. */
const forgotten = new Set((readStored(tabStorage(), FORGOTTEN) ?? "").split(" "));

export function forgetGone(): void {
  const gone = [...rows.value.values()].filter((row) => row.gone !== null);
  for (const { id } of gone) forgotten.add(id);
  store(tabStorage(), FORGOTTEN, [...forgotten].slice(-MOST_GONE * 5).join(" "));
  rows.value = new Map([...rows.value].filter(([, row]) => row.gone === null));
}

function take(events: readonly OverviewEvent[], toldNow: Set<string>): void {
  const next = new Map(rows.value);
  let more = false;
  for (const event of events) {
    if (event.type === "kernel") {
      const { id } = event.kernel;
      more ||= !next.has(id);
      toldNow.add(id);
      forgotten.delete(id);
      next.set(id, rowOf(event));
      notePoint(event);
    } else if (event.type === "gone") {
      toldNow.delete(event.kernel_id);
      if (!forgotten.has(event.kernel_id)) leave(next, event);
    } else {
      standing.value = "live";
      for (const [id, row] of next) {
        if (!toldNow.has(id) && row.gone === null) leave(next, { type: "gone", kernel_id: id, at: null, kernel: null, host: null });
      }
    }
  }
  rows.value = next;
  if (more) void askNames();
}

function notePoint({ kernel, sampled, cpu, memory }: KernelEvent): void {
  if (sampled !== null) addPoint(kernel.id, Date.parse(sampled), cpu, memory);
}

/** A kernel is gone: its row stays, with why. */
function leave(next: Map<string, Row>, event: OverviewEvent & { type: "gone" }): void {
  const { kernel_id: id } = event;
  const row = goneRow(event, next.get(id), names.peek().sessions.get(id) ?? "");
  if (row === null) return;
  forgetSeries(id);
  next.set(id, row);
  const gone = [...next.values()].filter((one) => one.gone !== null);
  gone.sort((one, other) => (one.gone ?? 0) - (other.gone ?? 0));
  for (const old of gone.slice(0, Math.max(0, gone.length - MOST_GONE))) next.delete(old.id);
}

async function follow(signal: AbortSignal): Promise<void> {
  for (let attempt = 0; !signal.aborted; attempt += 1) {
    const watched = watchedAttempt(signal);
    try {
      const toldNow = new Set<string>();
      const path = "/api/overview";
      for await (const events of streamLines<OverviewEvent>(path, watched.signal, watched.heard)) {
        attempt = 0;
        take(events, toldNow);
      }
    } catch (error) {
      if (error instanceof TokenWanted) return; // another token begins anew
      if (error instanceof StreamRefused && error.status === 403) {
        if (tokenWanted.peek() === "") standing.value = "refused";
        return;
      }
      if (!(error instanceof StreamRefused) && !signal.aborted) markUnreachable();
    } finally {
      watched.end();
    }
    await pause(retryDelay(attempt), signal);
  }
}

let namesAsked = 0;

async function askNames(): Promise<void> {
  const now = Date.now();
  if (me.peek() === null || now - namesAsked < 1000) return;
  namesAsked = now;
  const query = { no_track_activity: "1" } as never;
  const [specs, sessions] = await Promise.allSettled([
    allows("kernelspecs", "read") ? api.GET("/api/kernelspecs", { params: { query } }) : { data: undefined },
    allows("sessions", "read") ? api.GET("/api/sessions", { params: { query } }) : { data: undefined },
  ]);
  const had = names.peek();
  names.value = {
    specs: specs.status === "fulfilled" && specs.value.data ? specNames(specs.value.data) : had.specs,
    sessions:
      sessions.status === "fulfilled" && sessions.value.data
        ? new Map(sessions.value.data.map((one) => [one.kernel?.id ?? "", one.name || one.path]))
        : had.sessions,
  };
}

function specNames(data: {
  kernelspecs: Record<string, { spec: { display_name?: unknown } }>;
}): Map<string, string> {
  return new Map(
    Object.entries(data.kernelspecs).map(([name, { spec }]) => [
      name, typeof spec.display_name === "string" ? spec.display_name : name,
    ]),
  );
}

/** Follow the kernels for as long as the page is open, with the token that there is. */
export function followKernels(): void {
  let before = new AbortController();
  effect(() => {
    void token.value;
    void tokenTurn.value;
    before.abort();
    before = new AbortController();
    if (standing.peek() === "refused") standing.value = "waiting";
    void follow(before.signal);
  });
  effect(() => {
    if (me.value === null) return;
    namesAsked = 0;
    void askNames();
  });
  setInterval(() => {
    if (!document.hidden && standing.peek() === "live") void askNames();
  }, NAMES_MS);
}

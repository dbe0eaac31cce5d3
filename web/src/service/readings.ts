// What the service tells of itself, read again and again while the view is open, and remembered for
// ten minutes as long as the page is.

import { signal } from "@preact/signals";

import { api, request, type Schemas } from "../api/client";
import { pause } from "../api/reach";
import { type Figures, parseFigures, quantile, total } from "./prometheus";

export type Status = Schemas["StatusModel"];
export type Owner = Schemas["OwnerModel"];

const PERIOD_MS = 5000;
export const KEPT_MS = 600_000;
const LAG = "kernelkeep_event_loop_lag_seconds";

export interface Reading {
  readonly at: number;
  readonly connections: number;
  readonly logBytes: number;
  /** The bound in seconds below which 99 of 100 timers were late since the reading before. */
  readonly lag: number | null;
}

export const status = signal<Status | null>(null);
export const version = signal("");
export const owners = signal<readonly Owner[]>([]);
/** The figures of the whole server; `refused` if they are not for this identity, `absent` if not served. */
export const figures = signal<Figures | "refused" | "absent" | null>(null);
export const readings = signal<readonly Reading[]>([]);

let last: Figures | null = null;

async function readFigures(): Promise<void> {
  const response = await request("/metrics");
  if (!response.ok) {
    figures.value = response.status === 404 ? "absent" : "refused";
    return;
  }
  const read = parseFigures(await response.text());
  const restarted = total(read, `${LAG}_count`) < (last === null ? 0 : total(last, `${LAG}_count`));
  const now = Date.now();
  const reading: Reading = {
    at: now,
    connections: total(read, "kernelkeep_connections"),
    logBytes: total(read, "kernelkeep_log_bytes"),
    lag: quantile(restarted ? null : last, read, LAG, 0.99),
  };
  last = read;
  figures.value = read;
  readings.value = [...readings.value.filter(({ at }) => at > now - KEPT_MS), reading];
}

async function read(): Promise<void> {
  const [told, listed] = await Promise.all([api.GET("/api/status"), api.GET("/api/owners"), readFigures()]);
  status.value = told.data ?? null;
  owners.value = listed.data ?? [];
  if (version.value === "") version.value = (await api.GET("/api")).data?.version ?? "";
}

/** Read until the signal is aborted; a server that is away is asked again. */
export async function keepReading(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    if (!document.hidden) await read().catch(() => undefined);
    await pause(PERIOD_MS, signal);
  }
}

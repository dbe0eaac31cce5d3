// One row of the table of kernels, as plain data: what is shown, searched and sorted by.

import type { Schemas } from "../api/client";

export type KernelEvent = Schemas["KernelEvent"];
export type OverviewEvent =
  | (KernelEvent & { type: "kernel" })
  | (Schemas["GoneEvent"] & { type: "gone" })
  | { type: "whole"; kernels: number };

export interface Row {
  readonly id: string;
  readonly told: KernelEvent;
  readonly state: string;
  /** When the kernel ended or was found to be gone, in milliseconds; null as long as the server has it. */
  readonly gone: number | null;
  /** The name of its session, of a kernel that is gone: the session went with it. */
  readonly session: string;
}

export function rowOf(told: KernelEvent): Row {
  return { id: told.kernel.id, told, state: told.kernel.execution_state, gone: null, session: "" };
}

/** The row of a kernel that is gone. `before` is the row that it had; without one, the event has to tell. */
export function goneRow(event: Schemas["GoneEvent"], before: Row | undefined, session: string): Row | null {
  const { kernel_id: id, at, kernel, host } = event;
  const gone = at ? Date.parse(at) : (before?.gone ?? Date.now());
  const kept = session || (before?.session ?? "");
  if (kernel && at) {
    const figures = { running: null, waiting: 0, log_bytes: 0, sampled: null, cpu: null, memory: null };
    const told = { ...figures, type: "kernel" as const, kernel, state_since: at, host: host ?? null };
    return { id, told, state: kernel.execution_state, gone, session: kept };
  }
  return before === undefined ? null : { ...before, gone, session: kept };
}

/** Names for people that other answers of the API have: of kernelspecs, and of sessions by kernel. */
export interface Names {
  readonly specs: ReadonlyMap<string, string>;
  readonly sessions: ReadonlyMap<string, string>;
}

export function nameOf(row: Row, names: Names): string {
  return names.sessions.get(row.id) || row.session || specOf(row, names);
}

export function specOf(row: Row, names: Names): string {
  return names.specs.get(row.told.kernel.name) ?? row.told.kernel.name;
}

/** Why a kernel is gone or dead, was restarted, or cannot be reached; empty when there is nothing to say. */
export function reasonOf(row: Row): string {
  const { reason, restarts } = row.told.kernel;
  if (reason) return reason;
  if (row.gone !== null) return "It has ended, or is no longer for you to see";
  if (!restarts) return "";
  const times = restarts.count === 1 ? "once" : `${restarts.count} times`;
  return `Restarted ${times}: ${restarts.reason}`;
}

/** What its card on a phone has room for: one that is `quiet` runs nothing, and has no reason to tell. */
export function kindOf(row: Row): "gone" | "quiet" | "full" {
  if (row.gone !== null) return "gone";
  return row.told.running === null && reasonOf(row) === "" ? "quiet" : "full";
}

export const SORTS = [
  "name", "owner", "host", "state", "running", "activity", "connections", "memory", "cpu", "log",
] as const;
export type Sort = (typeof SORTS)[number];

/** The value that rows are compared by; figures that are missing come last, whichever way round. */
function key(row: Row, sort: Sort, names: Names): string | number | null {
  const { told } = row;
  switch (sort) {
    case "name":
      return nameOf(row, names).toLowerCase();
    case "owner":
      return told.kernel.owner ?? "";
    case "host":
      return told.host ?? "";
    case "state":
      return row.state;
    case "running":
      return told.running === null ? null : -Date.parse(told.running.since);
    case "activity":
      return -Date.parse(told.kernel.last_activity);
    case "connections":
      return told.kernel.connections;
    case "memory":
      return told.memory;
    case "cpu":
      return told.cpu;
    case "log":
      return told.log_bytes;
  }
}

/** Those that are gone come last, the latest first, whatever the others are sorted by. */
export function sorted(rows: readonly Row[], sort: Sort | null, down: boolean, names: Names): Row[] {
  const gone = rows.filter((row) => row.gone !== null);
  gone.sort((one, other) => (other.gone ?? 0) - (one.gone ?? 0));
  return [...sortedPresent(rows.filter((row) => row.gone === null), sort, down, names), ...gone];
}

function sortedPresent(rows: readonly Row[], sort: Sort | null, down: boolean, names: Names): Row[] {
  if (sort === null) return [...rows];
  const keyed = rows.map((row) => ({ row, value: key(row, sort, names) }));
  keyed.sort((one, other) => {
    if (one.value === null || other.value === null) {
      return Number(one.value === null) - Number(other.value === null);
    }
    const order = one.value < other.value ? -1 : one.value > other.value ? 1 : 0;
    return down ? -order : order;
  });
  return keyed.map(({ row }) => row);
}

/** Whether each word is somewhere in what the row shows. */
export function matches(row: Row, words: readonly string[], names: Names): boolean {
  if (words.length === 0) return true;
  const { told } = row;
  const text = [
    row.id, nameOf(row, names), specOf(row, names), told.kernel.name, told.kernel.owner ?? "",
    told.host ?? "", row.gone === null ? row.state : "gone", told.running?.code ?? "", reasonOf(row),
  ].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

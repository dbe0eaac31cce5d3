// What can be done with kernels. A stop and a restart lose what the kernel has in memory: they wait
// for some seconds, in which they can be undone.

import { signal } from "@preact/signals";

import { api, base, messageOf, request } from "../api/client";
import { toast } from "../components/toasts";

export type Action = "interrupt" | "restart" | "stop";

export const UNDO_SECONDS = 5;

interface Pending {
  readonly action: Action;
  readonly timer: ReturnType<typeof setTimeout>;
}

/** Actions that wait, by the kernel's id. */
export const pending = signal<ReadonlyMap<string, Pending>>(new Map());

const DOING = { interrupt: "interrupted", restart: "restarted", stop: "stopped" };

function without(ids: readonly string[]): void {
  const next = new Map(pending.value);
  for (const id of ids) {
    clearTimeout(next.get(id)?.timer);
    next.delete(id);
  }
  pending.value = next;
}

export function undo(ids: readonly string[]): void {
  without(ids);
}

/** Do something with kernels; `what` names them for people. */
export function act(action: Action, ids: readonly string[], what: string): void {
  if (ids.length === 0) return;
  if (action === "interrupt") {
    void Promise.all(ids.map((id) => perform(action, id))).then((done) => report(action, done, what));
    return;
  }
  without(ids);
  const next = new Map(pending.value);
  const timer = setTimeout(() => {
    const left = ids.filter((id) => pending.value.get(id)?.timer === timer);
    without(left);
    void Promise.all(left.map((id) => perform(action, id))).then((done) => report(action, done, what));
  }, UNDO_SECONDS * 1000);
  for (const id of ids) next.set(id, { action, timer });
  pending.value = next;
  const verb = action === "stop" ? "Stopping" : "Restarting";
  toast(`${verb} ${what} in ${UNDO_SECONDS} s.`, { undo: () => undo(ids), seconds: UNDO_SECONDS });
}

/** Do one action; returns what went wrong, or an empty text. */
async function perform(action: Action, id: string): Promise<string> {
  const params = { params: { path: { kernel_id: id } } };
  try {
    if (action === "stop") {
      const { error, response } = await api.DELETE("/api/kernels/{kernel_id}", params);
      if (response.status === 404) return "";
      return error ? messageOf(error) : "";
    }
    const { error } =
      action === "restart"
        ? await api.POST("/api/kernels/{kernel_id}/restart", params)
        : await api.POST("/api/kernels/{kernel_id}/interrupt", params);
    return error ? messageOf(error) : "";
  } catch (error) {
    return messageOf(error);
  }
}

function report(action: Action, done: readonly string[], what: string): void {
  const failed = done.filter((message) => message !== "");
  const [first] = failed;
  if (first !== undefined) {
    const many = failed.length > 1 ? ` (and ${failed.length - 1} more)` : "";
    toast(`Not ${DOING[action]}: ${first}${many}`, { kind: "error" });
  } else if (action === "interrupt") {
    toast(`Interrupted ${what}.`, { seconds: 3 });
  }
}

/** Whoever leaves the page has not undone what waits: it is sent, and outlives the page. */
window.addEventListener("pagehide", () => {
  for (const [id, { action }] of pending.value) {
    const path = `/api/kernels/${encodeURIComponent(id)}${action === "stop" ? "" : "/restart"}`;
    const method = action === "stop" ? "DELETE" : "POST";
    void request(new Request(base + path, { method, keepalive: true })).catch(() => undefined);
  }
  without([...pending.value.keys()]);
});

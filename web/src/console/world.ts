/** What a console needs of the page: its API, its storage, WebSockets and time. */

import { api, base, request } from "../api/client";
import { readStored, store } from "../app/storage";
import { token } from "../app/token";
import type { Look, Place, Socket } from "./connection";
import type { World } from "./console";
import type { Fate } from "./session";

const LOOK_MILLISECONDS = 10_000;

/** How often a page that is not shown is brought up to date; there are no frames then. */
const HIDDEN_MILLISECONDS = 500;

/** The address of a kernel's channels. */
export function channels(kernel: string): string {
  return `${base.replace(/^http/, "ws")}/api/kernels/${encodeURIComponent(kernel)}/channels`;
}

export function worldOf(kernel: string): World {
  const path = `/api/kernels/${encodeURIComponent(kernel)}`;
  const key = `kernelkeep.console.${kernel}`;
  return {
    openSocket: (url, protocols) => new WebSocket(url, protocols) as Socket,
    token: () => token.peek(),
    look: (place) => look(path, place),
    mayExecute: () => mayExecute(path),
    schedule: (run, milliseconds) => {
      const timer = setTimeout(run, milliseconds);
      return () => clearTimeout(timer);
    },
    now: () => Date.now(),
    random: () => Math.random(),
    newId: () => crypto.getRandomValues(new Uint8Array(16)).reduce(hexadecimal, ""),
    fate: (id) => fate(kernel, id),
    stored: () => readStored(tabStorage(), key),
    store: (saved) => store(tabStorage(), key, saved),
    nextFrame: (run) => {
      if (document.hidden) setTimeout(run, HIDDEN_MILLISECONDS);
      else requestAnimationFrame(run);
    },
  };
}

function hexadecimal(text: string, byte: number): string {
  return text + byte.toString(16).padStart(2, "0");
}

function tabStorage(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function limit(): { signal: AbortSignal } {
  return { signal: AbortSignal.timeout(LOOK_MILLISECONDS) };
}

async function look(path: string, place: Place | null): Promise<Look> {
  const query = place ? `after=${place.seq}&epoch=${encodeURIComponent(place.epoch)}` : "after=0";
  let response: Response;
  let said: { epoch?: string; last?: number; code?: string };
  try {
    response = await request(`${path}/messages?limit=1&${query}`, { ...limit(), cache: "no-store" });
    said = (await response.json()) as typeof said;
  } catch {
    return { is: "unreachable" };
  }
  if (response.ok && said.epoch !== undefined && said.last !== undefined)
    return { is: "there", epoch: said.epoch, last: said.last };
  if (response.status === 404) return { is: "gone" };
  if (response.status === 409 || said.code === "after_beyond_end") return { is: "stale" };
  if (response.status === 401 || response.status === 403)
    return { is: "refused", code: said.code ?? "" };
  return { is: "unreachable" };
}

/**
 * Whether the user may execute code. To cancel an execution that is not there takes that permission,
 * and does nothing.
 */
async function mayExecute(path: string): Promise<boolean | null> {
  try {
    const options = { ...limit(), method: "POST", body: "{}" };
    const response = await request(`${path}/executions/none/cancel`, options);
    return response.status === 403 ? false : response.status === 404 ? true : null;
  } catch {
    return null;
  }
}

async function fate(kernel_id: string, execution_id: string): Promise<Fate | null | undefined> {
  try {
    const params = { path: { kernel_id, execution_id }, query: { max_bytes: 0 } };
    const { data, response } = await api.GET(
      "/api/kernels/{kernel_id}/executions/{execution_id}",
      { params, ...limit() },
    );
    if (response.status === 404) return null;
    if (data === undefined) return undefined;
    return { state: data.state, prompt: data.input_request?.id ?? null };
  } catch {
    return undefined;
  }
}

/** Have the kernel interrupted; returns why it was not, or "". */
export async function interrupted(kernel_id: string): Promise<string> {
  try {
    const { error } = await api.POST("/api/kernels/{kernel_id}/interrupt", { params: { path: { kernel_id } } });
    return error === undefined ? "" : error.message;
  } catch {
    return "The server is not reached.";
  }
}

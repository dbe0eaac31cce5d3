// Whether the server is reached. `reached` is false after a request that got no answer, or one from a
// proxy whose server is away; whatever waits for the server asks again and again (`retryDelay`).

import { signal } from "@preact/signals";

export const reached = signal(true);

export function markReached(response: Response): void {
  reached.value = ![502, 503, 504].includes(response.status);
}

export function markUnreachable(): void {
  reached.value = false;
}

/** How long a stream of the server may say nothing at all: it says something each 15 s, as a rule. */
const SILENT_MS = 60_000;

/**
 * A signal for one attempt at a stream, which is aborted with `outer`, when the network is lost, and when
 * nothing arrives for too long; call `heard` for whatever arrives, `rest` when nothing is read for a
 * while, and `end` at the end.
 */
export function watchedAttempt(outer: AbortSignal): {
  signal: AbortSignal;
  heard: () => void;
  rest: () => void;
  end: () => void;
} {
  const controller = new AbortController();
  const stop = () => controller.abort();
  const lost = () => {
    markUnreachable();
    stop();
  };
  let timer = setTimeout(lost, SILENT_MS);
  outer.addEventListener("abort", stop);
  window.addEventListener("offline", lost);
  if (outer.aborted) stop();
  return {
    signal: controller.signal,
    heard: () => {
      clearTimeout(timer);
      timer = setTimeout(lost, SILENT_MS);
    },
    rest: () => clearTimeout(timer),
    end: () => {
      clearTimeout(timer);
      outer.removeEventListener("abort", stop);
      window.removeEventListener("offline", lost);
    },
  };
}

/** Milliseconds to wait before the attempt with this number, from 0: up to 10 s, with some chance. */
export function retryDelay(attempt: number): number {
  const most = Math.min(10_000, 500 * 2 ** Math.min(attempt, 6));
  return most / 2 + Math.random() * (most / 2);
}

/** Resolves after a while, or at once when the network is back or the signal is aborted. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    window.addEventListener("online", done);
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}

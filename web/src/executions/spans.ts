/** Where executions lie in the time that all of them take together. */

export interface Timed {
  readonly queued: string;
  readonly started: string | null;
  readonly ended: string | null;
  readonly seconds: number | null;
}

export interface Span {
  /** Seconds between the request and the beginning. */
  readonly waited: number;
  /** Seconds of running, so far; null if it never ran. */
  readonly ran: number | null;
  /** Parts of the whole time, in percent. */
  readonly left: number;
  readonly waitedWidth: number;
  readonly ranWidth: number;
}

export function ended(execution: { readonly state: string }): boolean {
  return execution.state !== "queued" && execution.state !== "running";
}

function part(value: number, whole: number): number {
  return Math.round((1000 * value) / whole) / 10;
}

/** `now` is the reader's clock: what has not ended lasts until then. */
export function spansOf(executions: readonly Timed[], now: number): readonly Span[] {
  const times = executions.map((execution) => {
    const queued = Date.parse(execution.queued);
    const end = execution.ended === null ? Math.max(now, queued) : Date.parse(execution.ended);
    const started = execution.started === null ? null : Date.parse(execution.started);
    return { queued, started, end: Math.max(end, started ?? queued), seconds: execution.seconds };
  });
  const first = Math.min(...times.map((one) => one.queued));
  const whole = Math.max(1, Math.max(...times.map((one) => one.end)) - first);
  return times.map(({ queued, started, end, seconds }) => {
    const begun = started ?? end;
    return {
      waited: Math.max(0, begun - queued) / 1000,
      ran: started === null ? null : (seconds ?? (end - started) / 1000),
      left: part(queued - first, whole),
      waitedWidth: part(Math.max(0, begun - queued), whole),
      ranWidth: started === null ? 0 : Math.max(0.3, part(end - started, whole)),
    };
  });
}

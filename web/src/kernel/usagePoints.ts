/** The past of a kernel's usage as points of lines. */

export interface Told {
  readonly at: string;
  readonly cpu: number | null;
  readonly memory: number | null;
  readonly messages?: number;
}

export interface Point {
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly cpu: number | null;
  readonly memory: number | null;
  /** Messages a second since the point before; null for the first. */
  readonly rate: number | null;
}

export function pointsOf(usage: { readonly history?: readonly Told[] | null }): readonly Point[] {
  const told = usage.history ?? [];
  return told.map((one, index) => {
    const at = Date.parse(one.at);
    return { at, cpu: one.cpu, memory: one.memory, rate: rateOf(one, told[index - 1], at) };
  });
}

function rateOf(one: Told, before: Told | undefined, at: number): number | null {
  if (before?.messages === undefined || one.messages === undefined) return null;
  const seconds = (at - Date.parse(before.at)) / 1000;
  return seconds > 0 ? Math.max(0, one.messages - before.messages) / seconds : null;
}

/** The last points, the newest first. */
export function latest(points: readonly Point[], count: number): readonly Point[] {
  return points.slice(-count).reverse();
}

/** What a line tells, in a sentence. */
export function summary(title: string, values: readonly (number | null)[], format: (value: number | null) => string): string {
  const known = values.filter((value): value is number => value !== null);
  if (known.length === 0) return `${title}: not known yet.`;
  const most = known.reduce((a, b) => Math.max(a, b));
  const least = known.reduce((a, b) => Math.min(a, b));
  return `${title}: now ${format(known.at(-1) ?? null)}, between ${format(least)} and ${format(most)}.`;
}

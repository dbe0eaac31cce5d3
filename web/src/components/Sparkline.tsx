// A small line of the last ten minutes, in which a gap is a gap.

interface Props {
  readonly points: readonly (readonly [at: number, value: number | null])[];
  readonly until: number;
  readonly milliseconds: number;
  readonly label: string;
  readonly least?: number; // what the top of the line stands for, at least
}

const WIDTH = 72;
const HEIGHT = 22;
const GAP_MS = 90_000;

export function sparkPath(
  points: Props["points"], from: number, until: number, top: number,
): string {
  let path = "";
  let before: number | null = null;
  for (const [at, value] of points) {
    if (value === null || at < from) {
      if (value === null) before = null;
      continue;
    }
    const x = ((at - from) / (until - from)) * WIDTH;
    const y = HEIGHT - 1 - (value / top) * (HEIGHT - 3);
    path += `${before === null || at - before > GAP_MS ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    before = at;
  }
  return path;
}

export function Sparkline({ points, until, milliseconds, label, least = 0 }: Props) {
  const from = until - milliseconds;
  const top = points.reduce((most, [, value]) => Math.max(most, value ?? 0), least) || 1;
  return (
    <svg class="spark" role="img" aria-label={label} viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      width={WIDTH} height={HEIGHT}>
      <path d={sparkPath(points, from, until, top)} />
    </svg>
  );
}

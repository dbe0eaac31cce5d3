// The figures of /metrics, in Prometheus's text format.

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export type Figures = ReadonlyMap<string, readonly Sample[]>;

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

export function parseFigures(text: string): Figures {
  const found = new Map<string, Sample[]>();
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const parts = LINE.exec(line);
    if (parts === null) continue;
    const [, name = "", labelled = "", value = ""] = parts;
    const labels: Record<string, string> = {};
    for (const [, label = "", escaped = ""] of labelled.matchAll(LABEL)) {
      labels[label] = escaped.replace(/\\(.)/g, (_, one: string) => (one === "n" ? "\n" : one));
    }
    const samples = found.get(name) ?? [];
    samples.push({ labels, value: value === "+Inf" ? Infinity : Number(value) });
    found.set(name, samples);
  }
  return found;
}

export function total(figures: Figures, name: string): number {
  return (figures.get(name) ?? []).reduce((sum, { value }) => sum + value, 0);
}

/** The sums by one label, the largest first, without those that are 0. */
export function totals(figures: Figures, name: string, label: string): [string, number][] {
  const sums = new Map<string, number>();
  for (const { labels, value } of figures.get(name) ?? []) {
    const key = labels[label] ?? "";
    sums.set(key, (sums.get(key) ?? 0) + value);
  }
  return [...sums].filter(([, value]) => value !== 0).sort(([, one], [, other]) => other - one);
}

/**
 * The bound below which `share` of what was observed between two readings lies; null if nothing was.
 * Of a histogram no more is known than between which bounds something lies.
 */
export function quantile(before: Figures | null, after: Figures, name: string, share: number): number | null {
  const old = new Map(
    (before?.get(`${name}_bucket`) ?? []).map(({ labels, value }) => [labels["le"], value]),
  );
  const buckets = (after.get(`${name}_bucket`) ?? []).map(({ labels, value }) => ({
    bound: labels["le"] === "+Inf" ? Infinity : Number(labels["le"]),
    count: value - (old.get(labels["le"]) ?? 0),
  }));
  buckets.sort((one, other) => one.bound - other.bound);
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  return buckets.find(({ count }) => count >= share * all)?.bound ?? null;
}

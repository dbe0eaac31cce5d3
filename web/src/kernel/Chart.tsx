import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { theme } from "../app/theme";
import { type Point, summary } from "./usagePoints";

interface Props {
  readonly title: string;
  readonly points: readonly Point[];
  readonly value: (point: Point) => number | null;
  readonly format: (value: number | null) => string;
  readonly limit: number | null;
}

const HEIGHT = 150;
const AXIS = 74;
const MINUTES = 10;

/** One line over time. What it tells is said in a sentence as well, and in the table below. */
export function Chart({ title, points, value, format, limit }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const look = theme.value;
  const values = points.map(value);
  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    const made = new uPlot(optionsOf(element, format), [[], []], element);
    plot.current = made;
    const watch = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [look, format]);
  useEffect(() => {
    plot.current?.setData([points.map((point) => point.at / 1000), values]);
  });
  return (
    <figure class="chart">
      <figcaption>
        {summary(title, values, format)}
        {limit !== null && ` The limit is ${format(limit)}.`}
      </figcaption>
      <div ref={place} aria-hidden="true" />
    </figure>
  );
}

function optionsOf(element: HTMLElement, format: Props["format"]): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string): string => style.getPropertyValue(name).trim();
  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 } };
  return {
    width: element.clientWidth || 300,
    height: HEIGHT,
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    scales: { x: { range: (_, __, last) => [last - MINUTES * 60, last] }, y: { range: (_, __, most) => (most > 0 ? [-0.03 * most, 1.1 * most] : [-0.03, 1]) } },
    axes: [{ ...axis, space: 70, incrs: [60, 120, 300], values: (_, splits) => splits.map((split) => clock.format(split * 1000)) }, { ...axis, size: AXIS, values: (_, splits) => splits.map((split) => format(split)) }],
    series: [{}, { stroke: colour("--accent"), width: 2, spanGaps: false, points: { show: false } }],
  };
}

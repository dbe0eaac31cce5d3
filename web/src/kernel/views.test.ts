import { expect, test } from "vitest";

import { spansOf } from "../executions/spans";
import { detailsOfEvent, nameOfEvent } from "./events";
import { latest, pointsOf, summary } from "./usagePoints";

test("messages a second are told by two points", () => {
  const history = [
    { at: "2026-01-01T00:00:00Z", cpu: null, memory: 10, messages: 100 },
    { at: "2026-01-01T00:00:05Z", cpu: 0.5, memory: 20, messages: 600 },
    { at: "2026-01-01T00:00:10Z", cpu: 0.5, memory: 20, messages: 20 },
  ];
  const points = pointsOf({ history });
  expect(points.map((point) => point.rate)).toEqual([null, 100, 0]);
  expect(latest(points, 2).map((point) => point.rate)).toEqual([0, 100]);
  expect(pointsOf({ history: null })).toEqual([]);
});

test("a line is told in a sentence", () => {
  const format = (value: number | null): string => `${value} B`;
  expect(summary("Memory", [1, null, 5, 3], format)).toBe("Memory: now 3 B, between 1 B and 5 B.");
  expect(summary("Memory", [null], format)).toBe("Memory: not known yet.");
});

test("executions lie where they were in time", () => {
  const at = (second: number): string => new Date(1000 * second).toISOString();
  const spans = spansOf(
    [
      { queued: at(0), started: at(1), ended: at(5), seconds: 4 },
      { queued: at(0), started: at(5), ended: null, seconds: null },
      { queued: at(8), started: null, ended: null, seconds: null },
      { queued: at(2), started: null, ended: at(3), seconds: null },
    ],
    10_000,
  );
  expect(spans[0]).toEqual({ waited: 1, ran: 4, left: 0, waitedWidth: 10, ranWidth: 40 });
  expect(spans[1]).toMatchObject({ waited: 5, ran: 5, waitedWidth: 50, ranWidth: 50 });
  expect(spans[2]).toMatchObject({ waited: 2, ran: null, left: 80, waitedWidth: 20, ranWidth: 0 });
  expect(spans[3]).toMatchObject({ waited: 1, ran: null });
  expect(spansOf([], 0)).toEqual([]);
});

test("events are told in words, and what went well only once", () => {
  const event = (event: string, details: Record<string, unknown>) => ({ at: "2026-01-01T00:00:00Z", event, details });
  expect(nameOfEvent(event("dead", { reason: "killed" }))).toBe("Dead");
  expect(detailsOfEvent(event("dead", { reason: "killed" }))).toBe("reason: killed");
  const started = event("start", { status: "success", msg: "Kernel k was started." });
  expect([nameOfEvent(started), detailsOfEvent(started)]).toEqual(["Started", ""]);
  const failed = event("start", { status: "error", msg: "no such kernelspec", status_code: 404 });
  expect(nameOfEvent(failed)).toBe("Started (failed)");
  expect(detailsOfEvent(failed)).toBe("msg: no such kernelspec, status code: 404");
  expect(detailsOfEvent(event("new", { one: { two: 3 }, none: null }))).toBe('one: {"two":3}');
  expect(nameOfEvent(event("new", {}))).toBe("new");
});

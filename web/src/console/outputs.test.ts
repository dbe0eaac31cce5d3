import { expect, test } from "vitest";

import type { KernelMessage } from "./messages";
import { CellOutput, MAX_CHARACTERS, MAX_ROWS, withinBounds } from "./outputs";

function stream(text: string, seq: number, type = "stream"): KernelMessage {
  return {
    channel: "iopub",
    header: { msg_id: `m${seq}`, msg_type: type, session: "k" },
    parent_header: { msg_id: "a" },
    metadata: {},
    content: { name: "stdout", text, data: { "text/plain": text } },
    seq,
  };
}

function textOf(output: CellOutput): string {
  return output.rows.map((row) => (row.kind === "stream" ? row.text : "")).join("");
}

test("messages become rows when they are settled", () => {
  const output = new CellOutput();
  output.take([stream("a\n", 1)]);
  output.take([stream("b\n", 2)]);
  expect(output.rows).toEqual([]);
  output.settle();
  expect(textOf(output)).toBe("a\nb\n");
  expect([output.cut, output.size]).toEqual([0, 4]);
  output.settle();
  expect(textOf(output)).toBe("a\nb\n");
});

test("of many rows the newest stay", () => {
  const output = new CellOutput();
  for (let seq = 1; seq <= MAX_ROWS + 20; seq++) output.take([stream(`${seq}`, seq, "display_data")]);
  output.settle();
  expect(output.rows).toHaveLength(MAX_ROWS);
  expect(output.cut).toBe(20);
});

test("of a flood the end stays", () => {
  const output = new CellOutput();
  const line = `${"x".repeat(999)}\n`;
  for (let seq = 1; seq <= 5000; seq++) {
    output.take([stream(line, seq)]);
    if (seq % 100 === 0) output.settle();
  }
  output.take([stream("the end\n", 5001)]);
  output.settle();
  expect(output.size).toBeLessThanOrEqual(MAX_CHARACTERS);
  expect(textOf(output)).toContain("the end");
  expect(output.cut).toBeGreaterThan(0);
});

test("one message of 50 MB", () => {
  const output = new CellOutput();
  output.take([stream("x".repeat(50_000_000), 1)]);
  output.settle();
  expect(output.rows).toHaveLength(1);
  expect(output.size).toBeLessThanOrEqual(MAX_CHARACTERS);
});

test("all outputs together stay within bounds: the oldest forget theirs, the newest never", () => {
  const outputs = [1, 2, 3].map(() => {
    const output = new CellOutput();
    output.take([stream("x".repeat(1000), 1)]);
    output.settle();
    return output;
  });
  expect(withinBounds(outputs, 3000).size).toBe(0);
  expect(withinBounds(outputs, 2500)).toEqual(new Set([outputs[0]]));
  expect(outputs.map(({ size }) => size)).toEqual([0, 1000, 1000]);
  expect(outputs[0]?.cut).toBe(1);
  expect(withinBounds(outputs, 10)).toEqual(new Set([outputs[1]]));
  expect(outputs[2]?.size).toBe(1000);
});

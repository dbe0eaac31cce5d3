import { expect, test } from "vitest";

import type { StreamRow } from "./rows";
import { ROW_CHARACTERS, ROW_LINES, StreamText, streamAgain } from "./stream";

function all(stream: StreamText, last: number): string {
  const open = stream.settle(last);
  return stream.pieces.map((piece) => piece.text).join("") + (open?.text ?? "");
}

test("many short messages become few pieces, of which nothing is missing", () => {
  const stream = new StreamText({ seq: 1, offset: 0 });
  let whole = "";
  for (let seq = 1; seq <= 1000; seq += 1) {
    stream.take(seq, `line ${seq}\n`);
    whole += `line ${seq}\n`;
  }
  expect(all(stream, 1000)).toBe(whole);
  expect(stream.pieces.length).toBe(1000 / ROW_LINES);
  expect(stream.pieces.every((piece) => piece.lines === ROW_LINES)).toBe(true);
});

test("one long line is cut, and one that is written over and over is not", () => {
  const long = new StreamText({ seq: 1, offset: 0 });
  long.take(1, "x".repeat(100_000));
  expect(all(long, 1)).toBe("x".repeat(100_000));
  expect(long.pieces.every((piece) => piece.text.length <= 2 * ROW_CHARACTERS)).toBe(true);

  const bar = new StreamText({ seq: 1, offset: 0 });
  for (let seq = 1; seq <= 20_000; seq += 1) bar.take(seq, `\rstep ${seq}`);
  expect(all(bar, 20_000)).toBe("step 20000");
  expect(bar.pieces.length).toBe(0);
});

test("the colour that is in effect goes on in the next piece", () => {
  const stream = new StreamText({ seq: 1, offset: 0 });
  stream.take(1, `\x1b[31m${"red\n".repeat(ROW_LINES)}still red`);
  expect(stream.settle(1)?.style).toBe("\x1b[31m");
});

test("each piece is the same when it is read again from the messages behind its origin", () => {
  const texts = Array.from({ length: 300 }, (_, index) => ({
    seq: index + 1,
    text: `${index % 7 === 0 ? "\x1b[3" + (index % 8) + "m" : ""}part ${index}${index % 3 === 0 ? "\n" : "\rP"}${"y".repeat(index)}\n`,
  }));
  const stream = new StreamText({ seq: 1, offset: 0 });
  for (const { seq, text } of texts) stream.take(seq, text);
  expect(stream.pieces.length).toBeGreaterThan(5);
  for (const piece of stream.pieces) {
    expect(streamAgain(piece as unknown as StreamRow, texts)).toBe(piece.text);
  }
});

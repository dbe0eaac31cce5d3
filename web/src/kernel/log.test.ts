import { expect, test } from "vitest";

import { LineSplitter, numberAtEnd, textAtHead } from "./lineSplitter";
import { itemOf, placeOf } from "./log";

const MESSAGE = '{"type":"message","channel":"iopub","session":null,"header":{"msg_type":"stream"},"parent_header":{},"metadata":{},"content":{"name":"stdout","text":"hello \\"you\\" \\u00e4"},"buffers":[],"seq":12}';

test("lines are whole wherever the stream is cut, and blank ones are left out", () => {
  const text = `${MESSAGE}\n\n${MESSAGE}\n`;
  for (let at = 0; at <= text.length; at += 1) {
    const splitter = new LineSplitter();
    const lines = [...splitter.push(text.slice(0, at)), ...splitter.push(text.slice(at))];
    expect(lines).toEqual([{ whole: MESSAGE }, { whole: MESSAGE }]);
  }
});

test("of a line that is too long the head and the end are kept, however it comes", () => {
  const long = MESSAGE.replace("hello", "h".repeat(300_000));
  for (const size of [7_919, 65_536, 1_000_000]) {
    const splitter = new LineSplitter(100_000);
    const lines = [];
    for (let at = 0; at < long.length; at += size) lines.push(...splitter.push(long.slice(at, at + size)));
    lines.push(...splitter.push(`\n${MESSAGE}\n`));
    expect(lines.length).toBe(2);
    expect(lines[1]).toEqual({ whole: MESSAGE });
    const [first] = lines;
    if (first === undefined || "whole" in first) throw new Error("the line is long");
    expect(first.length).toBe(long.length);
    expect(first.head.length + first.tail.length).toBeLessThan(70_000);
    expect(itemOf(first)).toMatchObject({ type: "large", seq: 12, what: "text", length: long.length });
  }
});

test("what the head of a long line tells is read although it is cut", () => {
  expect(textAtHead('{"text":"a\\nb\\"c","x"', "text")).toBe('a\nb"c');
  expect(textAtHead('{"text":"cut \\u00', "text")).toBe("cut ");
  expect(textAtHead('{"text":"cut \\', "text")).toBe("cut ");
  expect(textAtHead('{"text" : "spaced"}', "text")).toBe("spaced");
  expect(textAtHead("{}", "text")).toBe("");
  expect(numberAtEnd('"buffers":[],"seq":77}')).toBe(77);
  expect(numberAtEnd('"seq":null}')).toBeNull();
});

test("items have the numbers behind which the log goes on", () => {
  const places = [
    MESSAGE,
    '{"type":"gap","messages":3,"bytes":30,"seq":5}',
    '{"type":"closing","reason":"r"}',
    '{"type":"new kind of event","seq":9}',
    "not JSON",
    '{"type":"message","seq":3}',
  ].map((whole) => {
    const item = itemOf({ whole });
    return item === null ? undefined : placeOf(item);
  });
  expect(places).toEqual([12, 5, null, undefined, undefined, 3]);
});

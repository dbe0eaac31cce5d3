import { expect, test } from "vitest";

import type { DisplayRow, Row, StreamRow } from "./rows";
import type { Said } from "./said";
import { LARGE_CHARACTERS, Transcript } from "./transcript";

let seq = 0;

function said(type: string, content: Record<string, unknown>, parent = "p", number?: number): Said {
  seq = number ?? seq + 1;
  const header = { msg_id: `m${seq}`, msg_type: type, date: "2026-01-02T03:04:05Z" };
  return { seq, channel: "iopub", header, parent_header: { msg_id: parent }, metadata: {}, content };
}

const stream = (text: string, name = "stdout", parent = "p"): Said => said("stream", { name, text }, parent);
const display = (plain: string, id?: string, type = "display_data", parent = "p"): Said =>
  said(type, { data: { "text/plain": plain }, metadata: {}, transient: id === undefined ? {} : { display_id: id } }, parent);

function texts(transcript: Transcript): string[] {
  return transcript.rows.map((row: Row) => {
    if (row.kind === "stream") return row.text;
    return row.kind === "display" ? String(row.data["text/plain"]) : row.kind;
  });
}

test("streams are joined until something else comes", () => {
  const transcript = new Transcript();
  expect(transcript.take([stream("a"), stream("b\n"), stream("err", "stderr"), stream("c")])).toBe(true);
  transcript.take([stream("d"), display("shown"), stream("e")]);
  expect(texts(transcript)).toEqual(["ab\n", "err", "cd", "shown", "e"]);
  expect(transcript.take([said("status", { execution_state: "idle" }), said("comm_msg", {})])).toBe(false);
});

test("clear_output clears at once, or with the next output", () => {
  const transcript = new Transcript();
  transcript.take([said("execute_input", { code: "1" }), stream("a"), stream("x", "stdout", "other")]);
  transcript.take([said("clear_output", { wait: true })]);
  expect(texts(transcript)).toEqual(["code", "a", "x"]);
  transcript.take([display("b")]);
  expect(texts(transcript)).toEqual(["code", "x", "b"]);
  transcript.take([said("clear_output", { wait: false })]);
  expect(texts(transcript)).toEqual(["code", "x"]);
});

test("ten thousand pictures that replace each other are one row", () => {
  const transcript = new Transcript();
  for (let index = 0; index < 10_000; index += 1) {
    transcript.take([said("clear_output", { wait: true }), display(`picture ${index}`)]);
  }
  expect(texts(transcript)).toEqual(["picture 9999"]);
});

test("an update changes every row of its display", () => {
  const transcript = new Transcript();
  transcript.take([display("one", "id"), display("two", "id"), display("three")]);
  transcript.take([display("new", "id", "update_display_data", "another")]);
  expect(texts(transcript)).toEqual(["new", "new", "three"]);
});

test("a row that was dropped is the same when it is restored, with its newest update", () => {
  const transcript = new Transcript();
  seq = 0;
  const messages = [
    ...Array.from({ length: 120 }, (_, index) => stream(`line ${index}\n`)),
    display("one", "id"),
    said("error", { ename: "E", evalue: "v", traceback: ["a", "b"] }),
    said("execute_input", { code: "x", execution_count: 1 }),
    display("newest", "id", "update_display_data"),
  ];
  transcript.take(messages);
  const before = JSON.stringify(transcript.rows.map(({ revision: _, ...row }) => row));
  for (const row of [...transcript.rows]) transcript.drop(row);
  expect(transcript.rows.every((row) => row.dropped && row.size === 0)).toBe(true);
  for (const row of transcript.rows) transcript.restore(row, messages);
  expect(JSON.stringify(transcript.rows.map(({ revision: _, ...row }) => row))).toBe(before);
});

test("a huge text is shown by its head", () => {
  const transcript = new Transcript();
  transcript.take([stream("z".repeat(LARGE_CHARACTERS + 1))]);
  expect(transcript.rows).toMatchObject([{ kind: "large", whole: LARGE_CHARACTERS + 1 }]);
});

test("gaps, restarts and prompts are told where they were", () => {
  const transcript = new Transcript();
  transcript.gap(7, 6, 600);
  transcript.take([said("status", { execution_state: "restarting" }), said("input_request", { prompt: "? ", password: false })]);
  expect(transcript.rows.map((row) => row.kind)).toEqual(["gap", "notice", "input"]);
});

test("the first rows can be forgotten, and what comes then is not confused", () => {
  const transcript = new Transcript();
  transcript.take([display("one", "a"), display("two", "b"), stream("three")]);
  expect(transcript.forget(1)).toBe(1);
  transcript.take([display("x", "a", "update_display_data"), display("y", "b", "update_display_data"), stream("four")]);
  expect(texts(transcript)).toEqual(["y", "threefour"]);
  transcript.forget(5);
  transcript.take([stream("five")]);
  expect(texts(transcript)).toEqual(["five"]);
});

test("whatever a kernel puts into the fields of a message is survived", () => {
  const odd: unknown[] = [null, 1, true, "text", [], {}, { a: [{}] }, [[["x"]]]];
  const types = ["stream", "display_data", "execute_result", "update_display_data", "error", "execute_input", "clear_output", "input_request", "status", "nonsense"];
  const transcript = new Transcript();
  for (const type of types) {
    for (const value of odd) {
      const fields = ["name", "text", "data", "metadata", "transient", "ename", "evalue", "traceback", "code", "wait", "prompt", "execution_state", "execution_count"];
      transcript.take([said(type, Object.fromEntries(fields.map((field) => [field, value])))]);
      const bare = { seq: null, channel: "iopub", header: { msg_type: type }, parent_header: {}, metadata: {}, content: { data: value } };
      transcript.take([bare]);
    }
  }
  for (const row of transcript.rows) transcript.drop(row);
  expect((transcript.rows[0] as DisplayRow | StreamRow).key).toBeGreaterThan(0);
});

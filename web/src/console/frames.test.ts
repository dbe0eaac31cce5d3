import { expect, test } from "vitest";

import { frameOf } from "./fakes";
import { decode, encode, FrameError, SUBPROTOCOL, subprotocols } from "./frames";
import { request } from "./requests";

const HEADER = '{"msg_id": "a", "msg_type": "status", "session": "s"}';

test("a request is read as it was written", () => {
  const made = request("s", "id", "execute_request", { code: "'😀'" }, { parent: { msg_id: "p" } });
  const { channel, header, parent_header, content, seq } = decode(encode(made));
  expect({ channel, header, parent_header, content }).toEqual(made);
  expect(seq).toBeNull();
});

test("a message has its number in the log", () => {
  const metadata = '{"kernelkeep_seq":7}';
  expect(decode(frameOf("iopub", HEADER, "{}", metadata, "{}")).seq).toBe(7);
  expect(decode(frameOf("iopub", HEADER, "{}", '{"kernelkeep_seq":0}', "{}")).seq).toBeNull();
});

test("buffers behind the parts are passed over", () => {
  expect(decode(frameOf("iopub", HEADER, "{}", "{}", '{"a":1}', "buffer")).content).toEqual({ a: 1 });
});

test("what JSON does not have becomes null, and in texts it stays", () => {
  const content = '{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \\" Infinity", "NaN": 1}';
  expect(decode(frameOf("iopub", HEADER, "{}", "{}", content)).content).toEqual({
    a: null,
    b: [null, null],
    c: 'NaN " Infinity',
    NaN: 1,
  });
});

test.each([
  ["an empty frame", new ArrayBuffer(0)],
  ["a table that is cut", frameOf("iopub", HEADER).slice(0, 20)],
  ["too few parts", frameOf("iopub", HEADER, "{}", "{}")],
  ["a frame that is cut", frameOf("iopub", HEADER, "{}", "{}", "{}").slice(0, -1)],
  ["another channel", frameOf("other", HEADER, "{}", "{}", "{}")],
  ["no JSON", frameOf("iopub", HEADER, "{}", "{}", "{")],
  ["no object", frameOf("iopub", HEADER, "{}", "{}", "[]")],
  ["no type", frameOf("iopub", "{}", "{}", "{}", "{}")],
])("%s is refused", (_, frame) => {
  expect(() => decode(frame)).toThrow(FrameError);
});

test("offsets that run backwards are refused", () => {
  const frame = frameOf("iopub", HEADER, "{}", "{}", "{}");
  new DataView(frame).setBigUint64(16, 1n, true);
  expect(() => decode(frame)).toThrow(FrameError);
});

test("the token goes into a subprotocol, encoded", () => {
  expect(subprotocols("")).toEqual([SUBPROTOCOL]);
  const [first, second] = subprotocols("a b(,)é");
  expect(first).toBe(SUBPROTOCOL);
  expect(second).toBe("v1.token.websocket.jupyter.org.a%20b%28%2C%29%C3%A9");
});

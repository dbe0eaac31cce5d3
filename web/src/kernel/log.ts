/** What a stream of a kernel's log consists of, as this page takes it in. */

import type { Said } from "../output/said";
import { type Line, numberAtEnd, textAtHead } from "./lineSplitter";

export type LogItem =
  | { readonly type: "message"; readonly message: Said }
  | { readonly type: "large"; readonly seq: number; readonly length: number; readonly what: string; readonly head: string }
  | { readonly type: "gap"; readonly seq: number; readonly messages: number; readonly bytes: number }
  /** So many messages up to a number were not read, as they came faster than anybody could. */
  | { readonly type: "passed"; readonly seq: number; readonly messages: number }
  | { readonly type: "closing"; readonly reason: string };

const NONE: Readonly<Record<string, unknown>> = {};

export interface Event {
  type?: unknown;
  seq?: unknown;
  channel?: unknown;
  header?: unknown;
  parent_header?: unknown;
  metadata?: unknown;
  content?: unknown;
  messages?: unknown;
  bytes?: unknown;
  reason?: unknown;
}

/** The item of a line; null for one that means nothing to this version of the page. */
export function itemOf(line: Line): LogItem | null {
  if (!("whole" in line)) return largeOf(line);
  let event: Event;
  try {
    event = JSON.parse(line.whole) as Event;
  } catch {
    return null;
  }
  const seq = typeof event.seq === "number" ? event.seq : 0;
  switch (event.type) {
    case "message":
      return { type: "message", message: saidOf(event, seq) };
    case "gap":
      return { type: "gap", seq, messages: Number(event.messages) || 0, bytes: Number(event.bytes) || 0 };
    case "closing":
      return { type: "closing", reason: String(event.reason) };
    default:
      return null;
  }
}

/** A message as the API tells it. */
export function saidOf(event: Event, seq: number): Said {
  return {
    seq,
    channel: String(event.channel),
    header: object(event.header),
    parent_header: object(event.parent_header),
    metadata: object(event.metadata),
    content: object(event.content),
  };
}

function object(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : NONE;
}

function largeOf(line: { head: string; tail: string; length: number }): LogItem | null {
  const seq = numberAtEnd(line.tail);
  if (seq === null) return null;
  const type = textAtHead(line.head, "msg_type");
  const name = { stream: "text", execute_input: "code" }[type] ?? type;
  return { type: "large", seq, length: line.length, what: name, head: textAtHead(line.head, "text") };
}

/** The number behind which to go on after an item; null if it changes nothing. */
export function placeOf(item: LogItem): number | null {
  if (item.type === "message") return item.message.seq;
  return item.type === "closing" ? null : item.seq;
}

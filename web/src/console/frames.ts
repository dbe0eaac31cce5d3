/**
 * The framing `v1.kernel.websocket.jupyter.org`: a table of offsets, then the parts of a message.
 *
 * All integers are little-endian and have 64 bits: the number n of offsets, then n offsets from the
 * start of the frame. Behind them lie the channel's name, the four JSON parts and any buffers. A part
 * ends where the next begins, and the last offset is the frame's length.
 */

import type { Channel, Fields, Header, KernelMessage, Request } from "./messages";

export const SUBPROTOCOL = "v1.kernel.websocket.jupyter.org";

const TOKEN_SUBPROTOCOL = "v1.token.websocket.jupyter.org";

const CHANNELS = new Set(["shell", "iopub", "stdin", "control"]);

/** Channel and four JSON parts, and the end of the last of them. */
const LEAST_OFFSETS = 6;

/** The frame is no message in this framing. */
export class FrameError extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * The subprotocols to offer for a token. It is percent-encoded, and so are the few letters that
 * `encodeURIComponent` leaves and that a subprotocol must not have [RFC 7230, section 3.2.6].
 */
export function subprotocols(token: string): string[] {
  if (!token) return [SUBPROTOCOL];
  const encoded = encodeURIComponent(token).replace(
    /[()]/g,
    (letter) => `%${letter.charCodeAt(0).toString(16)}`,
  );
  return [SUBPROTOCOL, `${TOKEN_SUBPROTOCOL}.${encoded}`];
}

export function encode(request: Request): ArrayBuffer {
  const parts = [
    encoder.encode(request.channel),
    ...[request.header, request.parent_header, {}, request.content].map((part) =>
      encoder.encode(JSON.stringify(part)),
    ),
  ];
  const count = parts.length + 1;
  let offset = 8 * (count + 1);
  const frame = new Uint8Array(parts.reduce((size, part) => size + part.length, offset));
  const table = new DataView(frame.buffer);
  table.setBigUint64(0, BigInt(count), true);
  parts.forEach((part, index) => {
    table.setBigUint64(8 * (index + 1), BigInt(offset), true);
    frame.set(part, offset);
    offset += part.length;
  });
  table.setBigUint64(8 * count, BigInt(offset), true);
  return frame.buffer;
}

/** Read a frame of the service. Throws `FrameError`. Buffers are left out: the console has no use. */
export function decode(frame: ArrayBuffer): KernelMessage {
  const offsets = offsetsOf(frame);
  const part = (index: number): string =>
    decoder.decode(frame.slice(offsets[index], offsets[index + 1]));
  const channel = part(0);
  if (!CHANNELS.has(channel)) throw new FrameError(`no channel: ${channel.slice(0, 40)}`);
  const header = parsed(part(1));
  if (typeof header["msg_type"] !== "string" || typeof header["msg_id"] !== "string")
    throw new FrameError("the header names no type or id");
  const metadata = parsed(part(3));
  const seq = metadata["kernelkeep_seq"];
  return {
    channel: channel as Channel,
    header: header as Fields & Header,
    parent_header: parsed(part(2)),
    metadata,
    content: parsed(part(4)),
    seq: typeof seq === "number" && seq > 0 ? seq : null,
  };
}

function offsetsOf(frame: ArrayBuffer): number[] {
  const view = new DataView(frame);
  const count = frame.byteLength < 8 ? 0 : Number(view.getBigUint64(0, true));
  if (count < LEAST_OFFSETS || 8 * (count + 1) > frame.byteLength)
    throw new FrameError("the table of offsets does not fit the frame");
  const offsets: number[] = [];
  let previous = 8 * (count + 1);
  for (let index = 1; index <= count; index++) {
    const offset = Number(view.getBigUint64(8 * index, true));
    if (offset < previous) throw new FrameError("offsets overlap or run backwards");
    offsets.push(offset);
    previous = offset;
  }
  if (previous !== frame.byteLength) throw new FrameError("the last offset is not the frame's length");
  return offsets;
}

/** A JSON object. Kernels in Python may write NaN and Infinity, which become null. */
function parsed(json: string): Fields {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    try {
      value = JSON.parse(withoutNaN(json));
    } catch {
      throw new FrameError("a part is no JSON");
    }
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new FrameError("a part is no JSON object");
  return value as Fields;
}

function withoutNaN(json: string): string {
  let found = "";
  let from = 0;
  const word = /"|-?\b(?:NaN|Infinity)\b/g;
  for (let match = word.exec(json); match !== null; match = word.exec(json)) {
    if (match[0] === '"') {
      word.lastIndex = endOfString(json, match.index);
    } else {
      found += `${json.slice(from, match.index)}null`;
      from = word.lastIndex;
    }
  }
  return found + json.slice(from);
}

/** The index behind the string that begins at `start`. */
function endOfString(json: string, start: number): number {
  for (let index = start + 1; index < json.length; index++) {
    if (json[index] === "\\") index++;
    else if (json[index] === '"') return index + 1;
  }
  return json.length;
}

// Streams of the API: one JSON object a line (`application/x-ndjson`), read with `fetch`, as that can
// send the token in a header, which an EventSource or a WebSocket of a browser cannot.

import { request } from "./client";

/** A stream was refused: its status, and what the server says. */
export class StreamRefused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/**
 * The objects of one stream, several at a time as they arrive, until the stream ends or the signal is
 * aborted. `onBytes` is called for whatever arrives, blank lines that keep the stream alive included. Raises `StreamRefused`, or a `TypeError` when the connection breaks off.
 */
export async function* streamLines<T>(
  path: string,
  signal: AbortSignal,
  onBytes: () => void = () => undefined,
): AsyncGenerator<T[]> {
  const headers = { Accept: "application/x-ndjson" };
  const response = await request(path, { headers, signal, cache: "no-store" });
  if (!response.ok || response.body === null) {
    const said = (await response.json().catch(() => ({}))) as { code?: string; message?: string };
    throw new StreamRefused(response.status, said.code ?? "", said.message ?? response.statusText);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest: string[] = []; // pieces of a line that has not ended; joined once, however long it is
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      const lines = value.split("\n");
      const last = lines.pop() ?? "";
      if (lines.length > 0) {
        lines[0] = [...rest, lines[0]].join("");
        rest = [];
        const whole = lines.filter((line) => line.trim() !== "");
        if (whole.length > 0) yield whole.map((line) => JSON.parse(line) as T);
      }
      if (last !== "") rest.push(last);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

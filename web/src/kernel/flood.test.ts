import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { Flood, FLOOD_MESSAGES, NEWEST, newestOf, WINDOW } from "./flood";
import { Follower } from "./follower";
import type { LogItem } from "./log";

test("what was there before is no flood, and neither is what comes slowly", () => {
  const flood = new Flood(5000);
  for (let seq = 1; seq <= 5000; seq += 1) flood.note(seq, 100);
  expect(flood.isToo(0, true)).toBe(false);
  for (let seq = 5001; seq < 5001 + FLOOD_MESSAGES; seq += 1) flood.note(seq, 100);
  expect(flood.isToo(WINDOW + 1, false)).toBe(false);
  for (let seq = 7001; seq < 7001 + FLOOD_MESSAGES; seq += 1) flood.note(seq, 100);
  expect(flood.isToo(WINDOW + 2, false)).toBe(false);
  flood.note(9001, 100);
  expect(flood.isToo(WINDOW + 3, false)).toBe(true);
});

test("of large messages fewer are read at once", () => {
  const flood = new Flood(0);
  expect(flood.most).toBe(NEWEST);
  flood.measure(10, 1_000_000);
  expect(flood.most).toBeLessThan(10 + 1);
  flood.measure(10, 100_000);
  expect(flood.most).toBe(52);
});

test("what was passed over, and what is lost, stand before the messages of a page", () => {
  const page = { next: 30, last: 90, gap: { seq: 27, messages: 7, bytes: 70 }, messages: [{ seq: 28 }] };
  expect(newestOf(page, 10, 20)).toMatchObject([
    { type: "passed", seq: 20, messages: 10 },
    { type: "gap", seq: 27, messages: 7 },
    { type: "message", message: { seq: 28 } },
  ]);
  expect(newestOf({ ...page, gap: null }, 20, 20)).toHaveLength(1);
});

/** A log that grows as it is told, behind the two ways to read it. */
class Log {
  last = 0;
  asked: string[] = [];
  fails = false;
  private stream: ReadableStreamDefaultController<Uint8Array> | null = null;
  private told = 0;

  fetch = (path: string, init: RequestInit): Promise<Response> => {
    const { searchParams } = new URL(path, "http://h");
    const after = Number(searchParams.get("after"));
    const isStream = new Headers(init.headers).has("Accept");
    this.asked.push(isStream ? `stream ${after}` : `page ${after}`);
    if (this.fails) return Promise.reject(new Error("away"));
    return Promise.resolve(isStream ? this.streamed(after) : this.page(after, Number(searchParams.get("limit"))));
  };

  say(count: number): void {
    this.last += count;
    if (this.stream === null) return;
    while (this.told < this.last) {
      const lines = [];
      for (const end = Math.min(this.last, this.told + 100); this.told < end; ) lines.push(`{"type":"message","seq":${++this.told}}\n`);
      this.stream.enqueue(new TextEncoder().encode(lines.join("")));
    }
  }

  breaks(): void {
    this.stream?.close();
    this.stream = null;
  }

  private page(after: number, limit: number): Response {
    const messages = [];
    for (let seq = after + 1; seq <= Math.min(this.last, after + limit); seq += 1) messages.push({ seq });
    return Response.json({ epoch: "e", first: 1, last: this.last, next: after + messages.length, gap: null, messages });
  }

  private streamed(after: number): Response {
    this.told = after;
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.stream = controller;
        this.say(0);
      },
      cancel: () => {
        this.stream = null;
      },
    });
    return new Response(body);
  }
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("window", new EventTarget());
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** Whether the page was told that there is something to take. */
let changed = false;

/** Read for a while; what was read, as numbers and as the sizes of what was passed over. */
async function read(follower: Follower, milliseconds: number): Promise<(number | string)[]> {
  const items: LogItem[] = [];
  for (let passed = 0; passed < milliseconds; passed += 50) {
    await vi.advanceTimersByTimeAsync(50);
    if (changed) items.push(...follower.take());
    changed = false;
  }
  return items.map((item) =>
    item.type === "message" ? (item.message.seq ?? 0) : item.type === "passed" ? `${item.messages} to ${item.seq}` : item.type,
  );
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, index) => from + index);
}

function followed(log: Log, wantsNewest = true): Follower {
  const source = { fetch: log.fetch, changed: () => void (changed = true), wantsNewest: () => wantsNewest };
  return new Follower("/messages", 0, "e", 0, source);
}

test("in a flood the newest are read and the others passed over, up to the very end", async () => {
  const log = new Log();
  const follower = followed(log);
  await read(follower, 100);
  log.say(3000);
  const passing = await read(follower, 50);
  expect(passing).toEqual(range(1, 2600)); // a flood by then, and one page
  for (let turn = 0; turn < 8; turn += 1) {
    log.say(5000);
    passing.push(...(await read(follower, 250)));
    expect(follower.following.state).toBe("passing");
  }
  passing.push(...(await read(follower, 1500)));
  expect(follower.following.state).toBe("live");
  expect(passing.slice(-500)).toEqual(range(42_501, 43_000));
  let last = 0;
  for (const one of passing) {
    const [messages, to] = typeof one === "number" ? [1, one] : one.split(" to ").map(Number);
    expect(to).toBe(last + (messages ?? 0)); // each is read or passed over, once
    last = to ?? 0;
  }
  expect(passing.length).toBeLessThan(9000);
  log.say(3);
  expect(await read(follower, 100)).toEqual([43_001, 43_002, 43_003]);
  expect(follower.breaks).toBe(0);
  follower.stop();
});

test("who wants everything gets everything", async () => {
  const log = new Log();
  const follower = followed(log, false);
  await read(follower, 100);
  log.say(30_000);
  expect(await read(follower, 500)).toEqual(range(1, 30_000));
  expect(log.asked).toEqual(["stream 0"]);
  follower.stop();
});

test("what came while the server was away is passed over, too", async () => {
  const log = new Log();
  const follower = followed(log);
  await read(follower, 100);
  log.say(2);
  expect(await read(follower, 100)).toEqual([1, 2]);
  log.fails = true;
  log.breaks();
  log.say(10_000);
  expect(await read(follower, 2000)).toEqual([]);
  expect(follower.following.state).toBe("waiting");
  log.fails = false;
  const back = await read(follower, 20_000);
  expect(back).toEqual([...range(3, 502), "9000 to 9502", ...range(9503, 10_002)]);
  expect(follower.following.state).toBe("live");
  follower.stop();
});

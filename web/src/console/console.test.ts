import { beforeEach, expect, test } from "vitest";

import { Console } from "./console";
import { endOf } from "./ends";
import type { World } from "./console";
import { FakeSurroundings, settled } from "./fakes";
import type { Fields, KernelMessage } from "./messages";
import type { Cell, Fate } from "./session";

class Page extends FakeSurroundings implements World {
  ids = 0;
  kept: string | null = null;
  fates = new Map<string, Fate | null | undefined>();
  asked: string[] = [];
  newId = (): string => `id${++this.ids}`;
  fate = (id: string): Promise<Fate | null | undefined> => {
    this.asked.push(id);
    return Promise.resolve(this.fates.get(id));
  };
  stored = (): string | null => this.kept;
  store = (saved: string): void => {
    this.kept = saved;
  };
  nextFrame = (run: () => void): void => void Promise.resolve().then(run);
}

let page: Page;
let seq: number;

beforeEach(() => {
  page = new Page();
  seq = 5;
});

/** Open the WebSocket, and answer the request by which the console sees that it has read the log. */
async function open(made: Console): Promise<void> {
  await settled();
  page.socket.say(0, "status", { execution_state: "idle" });
  await settled();
  answer("kernel_info_request", { language_info: { name: "python" } });
  await settled();
  expect(made.link.is).toBe("open");
}

function last(type: string): KernelMessage {
  const found = page.socket.requests.filter(({ header }) => header.msg_type === type);
  expect(found.length, `a ${type}`).toBeGreaterThan(0);
  return found[found.length - 1] as KernelMessage;
}

function answer(type: string, content: Fields): void {
  const asked = last(type);
  page.socket.say(++seq, type.replace("request", "reply"), content, asked.header, "shell");
}

async function opened(): Promise<Console> {
  const made = new Console("ws://h/channels", page);
  made.connect();
  await open(made);
  return made;
}

function codes(): unknown[] {
  const requests = page.socket.requests.filter(
    ({ header }) => header.msg_type === "execute_request",
  );
  return requests.map(({ content }) => content["code"]);
}

async function lose(): Promise<void> {
  page.socket.onclose?.({ code: 1006 });
  await settled();
}

async function back(made: Console): Promise<void> {
  made.connect();
  await open(made);
}

test("how code that was entered here has ended is told, once", async () => {
  const made = await opened();
  const heard: string[] = [];
  made.onEnd = (words) => heard.push(words);
  made.run("1");
  const asked = last("execute_request");
  page.socket.say(++seq, "status", { execution_state: "busy" }, asked.header);
  page.socket.say(++seq, "execute_input", { code: "1", execution_count: 7 }, asked.header);
  await settled();
  expect(heard).toEqual([]);
  page.socket.say(++seq, "execute_reply", { status: "error", ename: "E", execution_count: 7 }, asked.header, "shell");
  page.socket.say(++seq, "status", { execution_state: "idle" }, asked.header);
  await settled();
  expect(heard).toEqual(["In[7] has failed."]);
  const others = { msg_id: "theirs", session: "other" };
  page.socket.say(++seq, "execute_input", { code: "2", execution_count: 8 }, others);
  page.socket.say(++seq, "execute_reply", { status: "ok", execution_count: 8 }, others, "shell");
  page.socket.say(++seq, "status", { execution_state: "idle" }, others);
  await settled();
  expect(heard).toHaveLength(1);
});

test("how code has ended is said in a sentence", () => {
  const cell = { count: 3, started: 1000, ended: 66_000 } as Cell;
  expect(endOf({ ...cell, state: "ok" })).toBe("In[3] has ended after 1 min 5 s.");
  expect(endOf({ ...cell, state: "aborted" })).toBe("In[3] was not run.");
  expect(endOf({ ...cell, state: "lost" })).toBe("In[3] ran; how it ended is not known.");
  expect(endOf({ ...cell, count: null, started: null, state: "cancelled" })).toBe("The code was cancelled.");
});

test("code waits until what the log had before has been read", async () => {
  const made = new Console("ws://h/channels", page);
  made.connect();
  made.run("1");
  await settled();
  page.socket.say(0, "status", { execution_state: "busy" });
  await settled();
  expect(codes()).toEqual([]);
  answer("kernel_info_request", {});
  await settled();
  expect(codes()).toEqual(["1"]);
  expect(last("execute_request").content["allow_stdin"]).toBe(true);
});

test("after a loss each piece of code is sent once, and in its order", async () => {
  const made = await opened();
  for (const code of ["arrived", "lost", "lost, too"]) made.run(code);
  expect(codes()).toEqual(["arrived", "lost", "lost, too"]);
  const [arrived, lost, lostToo] = made.session.items.map(({ id }) => id);
  await lose();
  made.run("later");
  page.fates.set(arrived ?? "", { state: "queued", prompt: null });
  page.fates.set(lost ?? "", null);
  page.fates.set(lostToo ?? "", null);
  await back(made);
  expect(codes()).toEqual(["lost", "lost, too", "later"]);
});

test("nothing is sent again while it cannot be told whether it has arrived", async () => {
  const made = await opened();
  made.run("perhaps");
  await lose();
  await back(made);
  expect(page.asked).toHaveLength(1);
  expect(codes()).toEqual([]);
  const again = page.timers.filter(({ milliseconds }) => milliseconds === 3000);
  expect(again).toHaveLength(1);
  page.fates.set(page.asked[0] ?? "", null);
  again[0]?.run();
  await settled();
  expect(codes()).toEqual(["perhaps"]);
});

test("a reload: the session, the draft, and what has not ended", async () => {
  const before = await opened();
  before.run("arrived");
  before.run("lost");
  const [arrived, lost] = before.session.items.map(({ id }) => id);
  await lose();
  before.run("waits");
  before.type("half a li");
  before.close();
  const after = new Console("ws://h/channels", page);
  expect([after.session.id, after.draft]).toEqual([before.session.id, "half a li"]);
  page.fates.set(arrived ?? "", { state: "running", prompt: null });
  page.fates.set(lost ?? "", null);
  after.connect();
  await settled();
  expect(page.socket.url).toContain("&after=5&epoch=e");
  page.socket.say(0, "status", { execution_state: "busy" });
  const parent = { msg_id: arrived ?? "", session: after.session.id, msg_type: "execute_request" };
  page.socket.say(++seq, "execute_input", { code: "arrived", execution_count: 1 }, parent);
  await settled();
  answer("kernel_info_request", {});
  await settled();
  expect(after.session.items).toMatchObject([
    { code: "arrived", mine: true, state: "running" },
    { code: "lost", state: "sent" },
    { code: "waits", state: "sent" },
  ]);
  expect(codes()).toEqual(["lost", "waits"]);
});

test("a request that the server never got: the connection is cut, and the code sent again", async () => {
  const made = await opened();
  made.run("swallowed");
  const { id } = made.session.items[0] ?? { id: "" };
  page.fates.set(id, null);
  const watch = page.timers.filter(({ milliseconds }) => milliseconds === 10_000);
  expect(watch).toHaveLength(1);
  watch[0]?.run();
  await settled();
  expect(made.link.is).toBe("lost");
  await back(made);
  expect(codes()).toEqual(["swallowed"]);
});

test("whether code is complete: as the kernel says, or by its looks", async () => {
  const made = await opened();
  const asked = made.isComplete("f(");
  answer("is_complete_request", { status: "incomplete", indent: "  " });
  expect(await asked).toEqual({ complete: false, indent: "  " });
  const late = made.isComplete("f(");
  page.timers[page.timers.length - 1]?.run();
  expect(await late).toEqual({ complete: false, indent: "" });
  await lose();
  expect((await made.isComplete("1")).complete).toBe(true);
});

test("completions: positions count code points", async () => {
  const made = await opened();
  const asked = made.complete("'😀', ze", 8);
  expect(last("complete_request").content["cursor_pos"]).toBe(7);
  const types = [{ text: "zebra", type: "instance" }, null, { text: "zero", type: "<unknown>" }];
  const metadata = { _jupyter_types_experimental: types };
  answer("complete_request", {
    matches: ["zebra", 7, "zero"],
    cursor_start: 5,
    cursor_end: 7,
    metadata,
  });
  expect(await asked).toEqual({
    from: 6,
    to: 8,
    options: [
      { label: "zebra", type: "instance" },
      { label: "zero", type: "" },
    ],
  });
});

test("what is asked is given up with the connection", async () => {
  const made = await opened();
  const asked = [made.complete("a", 1), made.inspect("a", 1, 0)];
  await lose();
  expect(await Promise.all(asked)).toEqual([null, null]);
});

test("what the kernel knows of a name", async () => {
  const made = await opened();
  const known = made.inspect("len", 3, 1);
  expect(last("inspect_request").content).toEqual({ code: "len", cursor_pos: 3, detail_level: 1 });
  answer("inspect_request", { found: true, data: { "text/plain": "Docstring" } });
  expect(await known).toBe("Docstring");
  const unknown = made.inspect("x", 1, 0);
  answer("inspect_request", { found: false });
  expect(await unknown).toBe("");
});

test("an answer needs a connection", async () => {
  const made = await opened();
  made.run("input()");
  const { header } = last("execute_request");
  page.socket.say(++seq, "input_request", { prompt: "Who? " }, header, "stdin");
  await lose();
  expect(made.answer("Ada")).toBe(false);
  page.fates.set(header.msg_id, { state: "running", prompt: `m${seq}` });
  await back(made);
  expect(made.answer("Ada")).toBe(true);
  expect(last("input_reply")).toMatchObject({ channel: "stdin", content: { value: "Ada" } });
  expect(made.answer("again")).toBe(false);
});

import { beforeEach, expect, test } from "vitest";

import type { Channel, Fields, Header, KernelMessage } from "./messages";
import { MAX_ITEMS, Session } from "./session";
import type { Cell, Output } from "./session";

class Said implements Output {
  texts: string[] = [];
  take(messages: readonly KernelMessage[]): boolean {
    for (const { content } of messages) this.texts.push(String(content["text"] ?? content["data"]));
    return true;
  }
}

let session: Session<Said>;
let seq = 0;

beforeEach(() => {
  session = new Session("mine", () => new Said());
  seq = 0;
});

function say(
  type: string,
  content: Fields,
  parent: Partial<Header> = {},
  channel: Channel = "iopub",
): KernelMessage {
  seq++;
  const date = new Date(1000 * seq).toISOString();
  const header = { msg_id: `m${seq}`, msg_type: type, session: "kernel", date };
  return { channel, header, parent_header: parent, metadata: {}, content, seq };
}

function of(id: string, owner = "mine"): Partial<Header> {
  return { msg_id: id, msg_type: "execute_request", session: owner, username: "ada" };
}

function status(state: string, id?: string, owner = "mine"): KernelMessage {
  return say("status", { execution_state: state }, id === undefined ? {} : of(id, owner));
}

function input(id: string, code: string, owner = "mine"): KernelMessage {
  return say("execute_input", { code, execution_count: 3 }, of(id, owner));
}

function reply(id: string, content: Fields): KernelMessage {
  return say("execute_reply", content, of(id), "shell");
}

function stream(text: string, id?: string, owner = "mine"): KernelMessage {
  return say("stream", { name: "stdout", text }, id === undefined ? {} : of(id, owner));
}

function asks(id: string, prompt: string, password = false): KernelMessage {
  return say("input_request", { prompt, password }, of(id), "stdin");
}

function entered(id: string, code = "code"): Cell<Said> {
  const cell = session.enter(id, code, 0);
  session.sent(cell);
  return cell;
}

function take(...messages: KernelMessage[]) {
  return messages.flatMap((message) => session.take(message));
}

test("code that is run: queued, running, and one end", () => {
  const cell = session.enter("a", "1", 0);
  expect(session.next).toBe(cell);
  session.sent(cell);
  expect([session.next, cell.state]).toEqual([null, "sent"]);
  take(status("busy", "a"), input("a", "1"));
  expect([cell.state, cell.count, session.busy]).toEqual(["running", 3, true]);
  take(stream("out", "a"), status("idle", "a"), reply("a", { status: "ok", execution_count: 4 }));
  expect([cell.state, cell.count, cell.output.texts]).toEqual(["ok", 4, ["out"]]);
  expect([cell.started, cell.ended]).toEqual([1000, 4000]);
  expect(session.busy).toBe(false);
});

test.each([
  [{ status: "error" }, false, "error"],
  [{ status: "aborted" }, false, "aborted"],
  [{ status: "abort" }, false, "aborted"],
  [{ status: "aborted" }, true, "lost"],
])("the reply %j, begun: %s", (content, begun, state) => {
  const cell = entered("a");
  take(status("busy", "a"));
  if (begun) take(input("a", "code"));
  take(reply("a", content), status("idle", "a"));
  expect(cell.state).toBe(state);
});

test("output that comes behind the end is shown", () => {
  const cell = entered("a");
  take(status("busy", "a"), status("idle", "a"), reply("a", { status: "ok" }), stream("late", "a"));
  expect(cell.output.texts).toEqual(["late"]);
});

test("what another client runs", () => {
  take(status("busy", "b", "theirs"), input("b", "x", "theirs"), stream("out", "b", "theirs"));
  const [cell] = session.items as Cell<Said>[];
  expect(cell).toMatchObject({ mine: false, by: "ada", code: "x", state: "running" });
  take(say("error", {}, of("b", "theirs")), status("idle", "b", "theirs"));
  expect(cell?.state).toBe("error");
});

test("the end of another client's code that was missed", () => {
  take(input("b", "x", "theirs"), input("c", "y", "theirs"));
  const [first, second] = session.items as Cell<Said>[];
  take(status("busy", "c", "theirs"));
  expect([first?.state, second?.state]).toEqual(["ok", "running"]);
});

test("code that was run before a reload is this console's own", () => {
  take(status("busy", "a"), input("a", "old"), status("idle", "a"), reply("a", { status: "ok" }));
  expect(session.items).toMatchObject([{ mine: true, code: "old", state: "ok" }]);
});

test("output whose code was never seen", () => {
  take(stream("out", "z"));
  expect(session.items).toMatchObject([{ code: null, output: { texts: ["out"] } }]);
});

test("what is not about code makes no cell", () => {
  const parent = { msg_id: "k", msg_type: "kernel_info_request", session: "theirs" };
  take(say("status", { execution_state: "busy" }, parent));
  expect([session.items, session.kernel]).toEqual([[], "busy"]);
  take(say("status", { execution_state: "idle" }, parent), say("comm_open", {}, of("a")));
  expect([session.items, session.busy]).toEqual([[], false]);
});

test("the state of another request does not hide that code runs", () => {
  entered("a");
  take(status("busy", "a"));
  const parent = { msg_id: "k", msg_type: "kernel_info_request", session: "theirs" };
  take(say("status", { execution_state: "idle" }, parent));
  expect([session.busy, session.kernel]).toEqual([true, "busy"]);
});

test("a lost connection: what is not known to have arrived is asked for, and sent in order", () => {
  const first = entered("a");
  const second = entered("b");
  const third = entered("c");
  take(status("busy", "a"));
  session.lost();
  expect([first.state, second.state, third.state]).toEqual(["running", "unsure", "unsure"]);
  const fourth = session.enter("d", "later", 0);
  expect(session.next).toBeNull();
  session.verified("b", { state: "queued", prompt: null }, true);
  expect(session.next).toBeNull();
  session.verified("c", null, true);
  expect([second.state, session.next]).toEqual(["sent", third]);
  session.sent(third);
  expect(session.next).toBe(fourth);
});

test.each(["ok", "error", "aborted", "cancelled", "lost"] as const)(
  "an end that was missed: %s",
  (state) => {
    const cell = entered("a");
    session.verified("a", { state, prompt: null }, true);
    expect(cell.state).toBe(state);
    session.verified("a", { state: "running", prompt: null }, true);
    expect(cell.state).toBe(state);
  },
);

test("running code that the server does not know any more", () => {
  const cell = entered("a");
  take(status("busy", "a"));
  session.verified("a", null, true);
  expect(cell.state).toBe("lost");
});

test("a gap in the log: what became of the rest is asked for", () => {
  entered("a");
  const gap = { ...say("stream", { name: "stderr", text: "gone" }), seq: null };
  expect(take(gap)).toEqual([{ do: "verify", id: "a" }]);
  expect(session.items[1]).toMatchObject({ kind: "note", output: { texts: ["gone"] } });
});

test("a prompt is answered once, and a password is not shown", () => {
  const cell = entered("a");
  expect(take(status("busy", "a"), asks("a", "Who? "))).toEqual([{ do: "verify", id: "a" }]);
  expect(session.asking?.prompt).toMatchObject({ text: "Who? ", password: false });
  session.answer(cell, "Ada");
  expect(session.asking).toBeNull();
  take(asks("a", "Secret: ", true));
  session.answer(cell, "s3same");
  session.answer(cell, "again");
  expect(cell.answered).toEqual([
    { text: "Who? ", answer: "Ada" },
    { text: "Secret: ", answer: null },
  ]);
});

test("a prompt ends with its code, and with the next one", () => {
  const cell = entered("a");
  take(status("busy", "a"), asks("a", "one"), asks("a", "two"));
  expect(session.asking?.prompt.text).toBe("two");
  take(reply("a", { status: "error" }));
  expect(session.asking).toBeNull();
  take(asks("a", "three"));
  expect(session.asking).toBeNull();
  expect(cell.answered.map(({ text }) => text)).toEqual(["one", "two"]);
});

test("a prompt that is read again was answered long ago", () => {
  take(status("busy", "a"), asks("a", "Who? "));
  session.verified("a", { state: "running", prompt: null }, true);
  expect(session.asking).toBeNull();
  expect(session.items).toMatchObject([{ answered: [{ text: "Who? ", answer: null }] }]);
});

test("an answer that did not arrive is asked for again, but only after a loss", () => {
  const cell = entered("a");
  take(status("busy", "a"), asks("a", "Who? "));
  const id = session.asking?.prompt.id ?? "";
  session.answer(cell, "Ada");
  session.verified("a", { state: "running", prompt: id }, false);
  expect(session.asking).toBeNull();
  session.verified("a", { state: "running", prompt: id }, true);
  expect(session.asking?.prompt.id).toBe(id);
  expect(cell.answered).toEqual([]);
});

test("a display is updated in each cell that shows it", () => {
  const first = entered("a");
  const second = entered("b");
  const transient = { display_id: "d" };
  take(say("display_data", { data: "1", transient }, of("a")));
  take(say("update_display_data", { data: "2", transient }, of("b")));
  expect([first.output.texts, second.output.texts]).toEqual([["1", "2"], []]);
});

test("payloads: a page of text, and the next input", () => {
  const cell = entered("a");
  const payload = [
    { source: "page", data: { "text/plain": "help" } },
    { source: "set_next_input", text: "next" },
    { source: "other" },
  ];
  expect(take(reply("a", { status: "ok", payload }))).toEqual([{ do: "insert", text: "next" }]);
  expect(cell.output.texts).toEqual(["help\n"]);
});

test("restarts and deaths are told once", () => {
  take(status("idle"), status("restarting"), status("starting"), status("idle"));
  take(status("starting"), status("idle"), status("dead"), status("dead"));
  expect(session.items.map((item) => (item.kind === "note" ? item.text : ""))).toEqual([
    "The kernel has died, and is restarted. What the code had defined is gone.",
    "The kernel is restarted. What the code had defined is gone.",
    "The kernel is dead.",
  ]);
});

test("clearing leaves what has not ended, and tells where that begins", () => {
  const done = entered("a");
  take(status("busy", "a"), reply("a", { status: "ok" }));
  const running = session.enter("b", "2", 2);
  expect(session.clear(9)).toBe(2);
  expect(session.items).toEqual([running]);
  expect(done.state).toBe("ok");
  take(reply("b", { status: "ok" }));
  expect(session.clear(9)).toBe(9);
  take(stream("late", "b"));
  expect(session.items).toEqual([]);
});

test("withdrawn code is gone, unless it was sent", () => {
  const cell = session.enter("a", "1", 0);
  session.withdraw(cell);
  expect([session.items, session.next]).toEqual([[], null]);
  const sent = entered("b");
  session.withdraw(sent);
  expect(session.items).toEqual([sent]);
});

test("so many cells are kept, and none that has not ended is dropped", () => {
  const running = entered("a");
  for (let number = 0; number < MAX_ITEMS + 5; number++) {
    entered(`n${number}`);
    take(reply(`n${number}`, { status: "ok" }));
  }
  expect(session.items).toHaveLength(MAX_ITEMS);
  expect(session.items[0]).toBe(running);
  expect(session.dropped).toBe(6);
});

test("content that is not as the protocol has it does no harm", () => {
  const cell = entered("a");
  take(
    say("status", {}, of("a")),
    say("execute_input", { code: 7, execution_count: "x" }, of("a")),
    say("display_data", { transient: null, data: null }, of("a")),
    say("input_request", { prompt: 5, password: "yes" }, of("a"), "stdin"),
    reply("a", { status: 5, payload: [null, 7, "x"] }),
  );
  expect(cell.state).toBe("error");
});

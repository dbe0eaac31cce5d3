import { beforeEach, expect, test } from "vitest";

import { Connection } from "./connection";
import type { Link, Listener, Look, Surroundings } from "./connection";
import { FakeSurroundings, settled } from "./fakes";
import type { KernelMessage } from "./messages";
import { request } from "./requests";

class World extends FakeSurroundings implements Surroundings, Listener {
  links: Link[] = [];
  taken: number[] = [];
  opened = 0;
  newLogs = 0;

  onLink(link: Link): void {
    this.links.push(link);
  }
  onOpen(): void {
    this.opened++;
  }
  onMessage(message: KernelMessage): void {
    this.taken.push(message.seq ?? 0);
  }
  onNewLog(): void {
    this.newLogs++;
  }

  /** Run the timer that was set last. */
  async tick(): Promise<void> {
    const timer = this.timers[this.timers.length - 1];
    expect(timer?.cancelled).toBe(false);
    timer?.run();
    await settled();
  }
}

let world: World;
let connection: Connection;

beforeEach(async () => {
  world = new World();
  connection = new Connection("ws://h/channels?session_id=s", null, world, world);
  connection.connect();
  await settled();
});

async function open(): Promise<void> {
  world.socket.say(0);
  await settled();
}

test("it begins at the end of the log, and shows the token in a subprotocol alone", async () => {
  expect(world.socket.url).toBe("ws://h/channels?session_id=s&after=5&epoch=e");
  expect(world.socket.protocols.join()).toContain("org.sesame");
  expect(connection.link.is).toBe("connecting");
  await open();
  expect(connection.link.is).toBe("open");
  expect(world.opened).toBe(1);
});

test("each message is handed on once, and it comes back behind the last one", async () => {
  await open();
  for (const seq of [6, 7, 7, 6, 9]) world.socket.say(seq);
  world.socket.onclose?.({ code: 1006 });
  expect(connection.link).toEqual({ is: "lost", since: 1000 });
  await world.tick();
  expect(world.socket.url).toContain("&after=9&epoch=e");
  await open();
  for (const seq of [8, 9, 10]) world.socket.say(seq);
  expect(world.taken).toEqual([0, 6, 7, 9, 0, 10]);
  expect(world.opened).toBe(2);
});

test("what an earlier socket still says does not count", async () => {
  await open();
  const first = world.socket;
  const { onmessage, onclose } = first;
  connection.cut();
  expect(first.closed).toBe(true);
  first.onmessage = onmessage;
  first.say(6);
  onclose?.({ code: 1006 });
  expect(world.taken).toEqual([0]);
  await world.tick();
  expect(connection.link.is).toBe("lost"); // until the new one greets
  await open();
  expect(connection.link.is).toBe("open");
});

test("pauses grow, and are bounded; they begin anew after a success", async () => {
  const pauses: number[] = [];
  for (let attempt = 0; attempt < 9; attempt++) {
    world.answers.push({ is: "unreachable" });
    connection.cut();
    connection.connect();
    await settled();
    pauses.push(world.timers[world.timers.length - 1]?.milliseconds ?? 0);
  }
  expect(pauses[0]).toBe(1000);
  expect(Math.max(...pauses)).toBe(8000);
  await world.tick();
  await open();
  world.socket.onclose?.({ code: 1012 });
  expect(world.timers[world.timers.length - 1]?.milliseconds).toBe(250);
});

test("a log that was begun anew", async () => {
  await open();
  world.socket.onclose?.({ code: 1006 });
  world.answers.push({ is: "stale" }, { is: "there", epoch: "new", last: 0 });
  await world.tick();
  expect(world.newLogs).toBe(1);
  expect(world.socket.url).toContain("after=0&epoch=new");
});

test.each([
  [4404, "gone"],
  [1000, "replaced"],
])("code %i is the end: %s", async (code, why) => {
  await open();
  world.socket.onclose?.({ code });
  expect(connection.link).toEqual({ is: "over", why });
  expect(world.timers.filter(({ cancelled }) => !cancelled)).toEqual([]);
});

test.each([
  [{ is: "gone" }, "gone"],
  [{ is: "refused", code: "unauthorized" }, "refused"],
  [{ is: "refused", code: "not_authorized" }, "forbidden"],
] as [Look, string][])("a look that says %j is the end", async (look, why) => {
  await open();
  world.socket.onclose?.({ code: 1006 });
  world.answers.push(look);
  await world.tick();
  expect(connection.link).toEqual({ is: "over", why });
  connection.connect(); // as with another token
  await settled();
  await open();
  expect(connection.link.is).toBe("open");
});

test("handshakes that fail again and again: perhaps they are not allowed", async () => {
  world.may = false;
  world.socket.onclose?.({ code: 1006 });
  expect(connection.link.is).toBe("lost");
  await world.tick();
  world.socket.onclose?.({ code: 1006 });
  await settled();
  expect(connection.link).toEqual({ is: "over", why: "forbidden" });
});

test("handshakes that fail although they are allowed go on", async () => {
  for (let attempt = 0; attempt < 5; attempt++) {
    world.socket.onclose?.({ code: 1006 });
    await settled();
    expect(connection.link.is).toBe("lost");
    await world.tick();
  }
});

test("a handshake that is never answered is given up", async () => {
  const first = world.socket;
  expect(world.timers[0]?.milliseconds).toBe(15_000);
  await world.tick();
  expect(first.closed).toBe(true);
  expect(connection.link.is).toBe("lost");
});

test("nothing is sent without a connection", async () => {
  const made = request("s", "a", "kernel_info_request", {});
  expect(connection.send(made)).toBe(false);
  await open();
  expect(connection.send(made)).toBe(true);
  expect(world.socket.sent).toHaveLength(1);
  world.socket.readyState = 2;
  expect(connection.send(made)).toBe(false);
});

test("a frame that is none is passed over", async () => {
  await open();
  world.socket.onmessage?.({ data: "text" });
  world.socket.onmessage?.({ data: new ArrayBuffer(3) });
  world.socket.say(6);
  expect(world.taken).toEqual([0, 6]);
});

test("it does nothing more when it was closed", async () => {
  await open();
  connection.close();
  expect(world.socket.closed).toBe(true);
  const before = world.sockets.length;
  await settled();
  expect(world.sockets).toHaveLength(before);
});

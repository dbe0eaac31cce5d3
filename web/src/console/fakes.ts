/** Stand-ins for the WebSockets, the API and the time of a console: for tests alone. */

import type { Look, Place, Socket } from "./connection";
import { decode } from "./frames";
import type { Channel, Fields, Header, KernelMessage } from "./messages";

/** A frame in the framing v1, of any texts. */
export function frameOf(channel: string, ...parts: string[]): ArrayBuffer {
  const encoded = [channel, ...parts].map((part) => new TextEncoder().encode(part));
  const count = encoded.length + 1;
  const size = encoded.reduce((sum, part) => sum + part.length, 8 * (count + 1));
  const frame = new Uint8Array(size);
  const view = new DataView(frame.buffer);
  view.setBigUint64(0, BigInt(count), true);
  let offset = 8 * (count + 1);
  encoded.forEach((part, index) => {
    view.setBigUint64(8 * (index + 1), BigInt(offset), true);
    frame.set(part, offset);
    offset += part.length;
  });
  view.setBigUint64(8 * count, BigInt(offset), true);
  return frame.buffer;
}

export class FakeSocket implements Socket {
  binaryType = "";
  readyState = 1;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason?: string }) => void) | null = null;
  sent: ArrayBuffer[] = [];
  closed = false;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {}

  send(data: ArrayBuffer): void {
    this.sent.push(data);
  }

  close(): void {
    this.closed = true;
  }

  /** What the console has sent, as the server reads it. */
  get requests(): KernelMessage[] {
    return this.sent.map(decode);
  }

  /** Say something to the console, with a number in the log; 0 for none. */
  say(
    seq: number,
    type = "stream",
    content: Fields = {},
    parent: Partial<Header> = {},
    channel: Channel = "iopub",
  ): void {
    const header = { msg_id: `m${seq}`, msg_type: type, session: "kernel" };
    const parts = [header, parent, { kernelkeep_seq: seq }, content];
    this.onmessage?.({ data: frameOf(channel, ...parts.map((part) => JSON.stringify(part))) });
  }
}

/** The surroundings of a connection: each timer runs when it is told to. */
export class FakeSurroundings {
  sockets: FakeSocket[] = [];
  looks: (Place | null)[] = [];
  answers: Look[] = [];
  may: boolean | null = true;
  timers: { run: () => void; milliseconds: number; cancelled: boolean }[] = [];

  openSocket = (url: string, protocols: string[]): Socket => {
    const socket = new FakeSocket(url, protocols);
    this.sockets.push(socket);
    return socket;
  };
  token = (): string => "sesame";
  look = (place: Place | null): Promise<Look> => {
    this.looks.push(place);
    return Promise.resolve(this.answers.shift() ?? { is: "there", epoch: "e", last: 5 });
  };
  mayExecute = (): Promise<boolean | null> => Promise.resolve(this.may);
  schedule = (run: () => void, milliseconds: number): (() => void) => {
    const timer = { run, milliseconds, cancelled: false };
    this.timers.push(timer);
    return () => {
      timer.cancelled = true;
    };
  };
  now = (): number => 1000;
  random = (): number => 1;

  get socket(): FakeSocket {
    return this.sockets[this.sockets.length - 1] as FakeSocket;
  }
}

/** Let all promises go on that can. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 30; turn++) await Promise.resolve();
}

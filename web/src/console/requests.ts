/** Requests to the kernel that are answered by a reply: completion, inspection and the like. */

import type { Channel, Fields, Header, KernelMessage, Request } from "./messages";

export const PROTOCOL_VERSION = "5.4";

/** The user name in the headers; other clients show it. */
export const USERNAME = "page";

export function request(
  session: string,
  id: string,
  type: string,
  content: Fields,
  { channel = "shell", parent = {} }: { channel?: Channel; parent?: Partial<Header> } = {},
): Request {
  const header: Header = {
    msg_id: id,
    msg_type: type,
    session,
    username: USERNAME,
    date: new Date().toISOString(),
    version: PROTOCOL_VERSION,
  };
  return { channel, header, parent_header: parent, content };
}

/** The requests that wait for their replies. */
export class Asked {
  #waiting = new Map<string, (content: Fields | null) => void>();

  /** The content of the reply; null if none comes in time, or the connection is lost before. */
  add(
    id: string,
    milliseconds: number | null,
    schedule: (run: () => void, milliseconds: number) => () => void,
  ): Promise<Fields | null> {
    return new Promise((resolve) => {
      const end = (content: Fields | null) => {
        cancel();
        this.#waiting.delete(id);
        resolve(content);
      };
      const cancel = milliseconds === null ? () => {} : schedule(() => end(null), milliseconds);
      this.#waiting.set(id, end);
    });
  }

  /** Take a message; returns whether it is the reply to one of these requests. */
  settle(message: KernelMessage): boolean {
    if (message.channel === "iopub") return false;
    const end = this.#waiting.get(message.parent_header.msg_id ?? "");
    end?.(message.content);
    return end !== undefined;
  }

  /** The connection is lost: no reply will come. */
  giveUp(): void {
    for (const end of [...this.#waiting.values()]) end(null);
  }
}

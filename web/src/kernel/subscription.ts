/** The server's events, over the WebSocket that tells them; it is opened anew after each break. */

import { base } from "../api/client";
import { pause, retryDelay } from "../api/reach";
import { token } from "../app/token";

const PROTOCOL = "v1.token.websocket.jupyter.org";
const FORBIDDEN = 4403;

export interface Listener {
  event(text: string): void;
  /** What is wrong; empty when nothing is. */
  problem(text: string): void;
}

/** The token as a subprotocol: so it is in no address. */
function protocols(): string[] {
  const shown = token.peek();
  return shown === "" ? [] : [PROTOCOL, `${PROTOCOL}.${encodeURIComponent(shown)}`];
}

function once(listener: Listener, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const address = `${base.replace(/^http/, "ws")}/api/events/subscribe`;
    const socket = new WebSocket(address, protocols());
    let opened = false;
    signal.addEventListener("abort", () => {
      // Browsers complain of a socket that is closed before it is open.
      if (socket.readyState !== WebSocket.CONNECTING) socket.close();
    });
    socket.onopen = () => {
      if (signal.aborted) return socket.close();
      opened = true;
      listener.problem("");
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string") listener.event(event.data);
    };
    socket.onclose = (event) => {
      if (event.code === FORBIDDEN) listener.problem("You may not see events here.");
      resolve(opened);
    };
  });
}

/** Listen until the function that is returned is called. */
export function listen(listener: Listener): () => void {
  const aborter = new AbortController();
  const run = async (): Promise<void> => {
    for (let attempt = 0; !aborter.signal.aborted; attempt += 1) {
      if (await once(listener, aborter.signal)) attempt = 0;
      if (aborter.signal.aborted) return;
      listener.problem("Events cannot be heard just now; the page tries again.");
      await pause(retryDelay(attempt), aborter.signal);
    }
  };
  void run();
  return () => aborter.abort();
}

import { useEffect, useState } from "preact/hooks";

import { api } from "../api/client";
import { parentOf, text, typeOf } from "../output/said";

const LOOKED_AT = 50;

interface Numbered {
  readonly id: string;
  readonly first_seq: number | null;
}

/** The code of an execution, by the log: it is in one of the execution's first messages. */
async function codeOf(kernel: string, execution: string, first: number): Promise<string | null> {
  const { data } = await api.GET("/api/kernels/{kernel_id}/messages", {
    params: { path: { kernel_id: kernel }, query: { after: Math.max(0, first - 1), limit: LOOKED_AT } },
  });
  const messages = data === undefined || typeof data === "string" ? [] : data.messages;
  for (const message of messages) {
    const said = { ...message, seq: message.seq ?? null };
    if (typeOf(said) === "execute_input" && parentOf(said) === execution) return text(said.content["code"]);
  }
  return null;
}

export function useCode(kernel: string, execution: Numbered | null): string | null {
  const [code, setCode] = useState<string | null>(null);
  const id = execution?.id ?? null;
  const first = execution?.first_seq ?? null;
  useEffect(() => {
    if (id === null || first === null) return;
    let wanted = true;
    codeOf(kernel, id, first).then(
      (found) => wanted && setCode(found),
      () => undefined, // the page tells that the server is not reached
    );
    return () => {
      wanted = false;
    };
  }, [kernel, id, first]);
  return code;
}

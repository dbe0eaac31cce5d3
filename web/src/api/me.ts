// Who the page's token belongs to, and what it allows: views hide what would only be refused.

import { effect, signal } from "@preact/signals";

import { token, tokenTurn } from "../app/token";
import { api, type Schemas, TokenWanted } from "./client";
import { pause, retryDelay } from "./reach";

export type Me = Schemas["MeModel"];

export const me = signal<Me | null>(null);

const ASKED = {
  kernels: ["read", "write", "execute"],
  kernelspecs: ["read"],
  sessions: ["read"],
  api: ["read"],
};

/** Whether the identity may do something; true as long as that is not known, for the server decides. */
export function allows(resource: keyof typeof ASKED, action: string): boolean {
  const allowed = me.value?.permissions[resource];
  return allowed === undefined || allowed.includes(action);
}

async function ask(shown: string): Promise<void> {
  for (let attempt = 0; token.peek() === shown; attempt += 1) {
    try {
      const query = { permissions: JSON.stringify(ASKED) };
      const { data } = await api.GET("/api/me", { params: { query } });
      if (token.peek() === shown) me.value = data ?? null;
      return;
    } catch (error) {
      if (error instanceof TokenWanted) return; // another token begins anew
      await pause(retryDelay(attempt));
    }
  }
}

/** Ask who the token belongs to, now and whenever there is another one. */
export function followMe(): void {
  effect(() => {
    void tokenTurn.value;
    void ask(token.value);
  });
}

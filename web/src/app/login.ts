// Logging in with another service: the prompt leads the browser there, and it comes back at
// `#/logged-in` or `#/login-failed`. The page then takes the token, which the server gives once.

import { signal } from "@preact/signals";

import { base } from "../api/client";
import { href, replaceRoute, route } from "./router";
import { readStored, store } from "./storage";
import { noteRefused, tabStorage, token, useToken } from "./token";

const PLACE = "kernelkeep.place";

/** Why the last login came to nothing; empty when there is nothing to say. */
export const loginError = signal("");

export interface LoginWay {
  readonly name: string;
  readonly url: string;
}

export async function loginWays(): Promise<readonly LoginWay[]> {
  const response = await fetch(`${base}/api/login`);
  if (!response.ok) return []; // there are none
  const { providers } = (await response.json()) as { providers: LoginWay[] };
  // An address of another kind, such as one with a script in it, is no way to log in.
  return providers.filter(({ url }) => /^https?:$/.test(new URL(url, `${base}/`).protocol));
}

/** Remember where the page is: the browser leaves it for a login. */
export function rememberPlace(): void {
  store(tabStorage(), PLACE, location.hash);
}

/** Whether the browser has come back from a login. */
export function comesFromLogin(): boolean {
  const [first] = route.peek().path;
  return first === "logged-in" || first === "login-failed";
}

/** Take the token of a login, and go on where the page was. */
export async function endLogin(): Promise<void> {
  const failed = route.peek().path[0] === "login-failed";
  replaceRoute(readStored(tabStorage(), PLACE) || href("kernels"));
  store(tabStorage(), PLACE, null);
  const error = failed ? "The login was not finished, or took too long. Begin again." : await take();
  if (error === "") return;
  loginError.value = error;
  noteRefused(token.peek());
}

async function take(): Promise<string> {
  try {
    const response = await fetch(`${base}/api/login`, { method: "POST" });
    const said = (await response.json()) as { token?: string; message?: string };
    if (!response.ok || said.token === undefined) return said.message ?? "The login has failed.";
    useToken(said.token);
    return "";
  } catch {
    return "The server was not reached. Begin again.";
  }
}

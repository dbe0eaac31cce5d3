// Logging in with the service that knows the person: the browser leaves the page, and comes back at
// `#/logged-in`, where the page takes the token, once, and goes on where it was.

import { signal } from "@preact/signals";

import { base } from "../api/client";
import { replaceRoute } from "./router";
import { readStored, store, tabStorage } from "./storage";
import { tokenWanted, useToken } from "./token";

const PLACE = "kernelkeep.place";

export interface LoginProvider {
  readonly name: string;
  /** The address to leave for. */
  readonly url: string;
}

/** Why a login has come to nothing; empty if none has. */
export const loginProblem = signal("");

export async function askProviders(): Promise<readonly LoginProvider[]> {
  const response = await fetch(`${base}/api/login`);
  if (!response.ok) return [];
  const { providers } = (await response.json()) as { providers: LoginProvider[] };
  return (
    providers
      .map(({ name, url }) => ({ name, url: new URL(url, `${base}/`).href }))
      // An address of another kind, such as one with a script in it, is no way to log in.
      .filter(({ url }) => /^https?:/.test(url))
  );
}

/** Remember the view that is shown, for when the person comes back. */
export function leaveForLogin(): void {
  store(tabStorage(), PLACE, location.hash);
}

/** Whether somebody has come back, and the token is being taken: nothing else is asked meanwhile. */
export const comingBack = signal(false);

async function comeBack(): Promise<void> {
  comingBack.value = true;
  tokenWanted.value = "first";
  const place = readStored(tabStorage(), PLACE);
  store(tabStorage(), PLACE, null);
  replaceRoute(place?.startsWith("#/") ? place : "#/");
  try {
    const response = await fetch(`${base}/api/login`, { method: "POST" });
    const answer = (await response.json()) as { token?: string; message?: string };
    if (response.ok && answer.token !== undefined) useToken(answer.token);
    else loginProblem.value = answer.message ?? "The login has come to nothing: begin again.";
  } catch {
    loginProblem.value = "The server was not reached: begin again.";
  } finally {
    comingBack.value = false;
  }
}

// Before any view asks the server for anything.
if (/^#\/(logged-in|login-failed)$/.test(location.hash)) void comeBack();

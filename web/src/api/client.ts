// The API of the server, typed by docs/openapi.json: `api.GET("/api/kernels")`. Each request carries
// the token in a header; an answer that says that the token is not good opens the prompt.

import createClient from "openapi-fetch";

import { noteAccepted, noteRefused, token, tokenWanted } from "../app/token";
import type { components, paths } from "./schema";
import { markReached, markUnreachable } from "./reach";

export type Schemas = components["schemas"];
export type Kernel = Schemas["KernelModel"];
export type KernelUsage = Schemas["KernelUsage"];

/** The address below which the API is, without a slash at its end: the page's own directory. */
export const base: string = new URL(".", document.baseURI).href.replace(/\/$/, "");

/** `fetch` with the token, which notes whether the server is reached. A path begins with a slash. */
export async function request(input: Request | string, init?: RequestInit): Promise<Response> {
  const made = new Request(typeof input === "string" ? base + input : input, init);
  const shown = token.peek();
  if (tokenWanted.peek() !== "") throw new TokenWanted();
  if (shown !== "") made.headers.set("Authorization", `token ${headerValue(shown)}`);
  let response: Response;
  try {
    response = await fetch(made);
  } catch (error) {
    if (!made.signal.aborted) markUnreachable();
    throw error;
  }
  markReached(response);
  if (response.status === 401 || response.status === 403) await noteRefusal(response, shown);
  else if (response.ok) noteAccepted(shown);
  return response;
}

/** A request was not made, since the server would refuse it, and count it as a guess. */
export class TokenWanted extends Error {
  constructor() {
    super("The server wants another token.");
  }
}

/** Headers hold Latin-1 alone; the server reads the bytes of a token as UTF-8. */
function headerValue(text: string): string {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

async function noteRefusal(response: Response, shown: string): Promise<void> {
  const code = await codeOf(response);
  if (response.status === 403 && code !== "unauthorized") return; // a permission is missing
  noteRefused(shown);
}

async function codeOf(response: Response): Promise<string> {
  try {
    return ((await response.clone().json()) as { code?: string }).code ?? "";
  } catch {
    return "";
  }
}

export const api = createClient<paths>({ baseUrl: base, fetch: request });

/** What is wrong, for people, of an error that the API has answered with, or of one that was raised. */
export function messageOf(error: unknown): string {
  if (typeof error === "object" && error !== null && "message" in error) {
    return String((error as { message: unknown }).message);
  }
  return String(error);
}

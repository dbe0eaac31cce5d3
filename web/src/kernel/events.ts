/** Events of one kernel, in words. */

import type { Schemas } from "../api/client";

const NAMES: Readonly<Record<string, string>> = {
  ready: "Ready",
  dead: "Dead",
  automatic_restart: "Restarted by itself",
  ends_soon: "Ends soon",
  culled: "Culled",
  shut_down_by_client: "Shut down by a client",
  start: "Started",
  interrupt: "Interrupted",
  restart: "Restarted",
  shutdown: "Shut down",
};

export function nameOfEvent({ event, details }: Schemas["PastEvent"]): string {
  return (NAMES[event] ?? event) + (details["status"] === "error" ? " (failed)" : "");
}

/** What is known beside the name; the message of what went well only repeats that. */
export function detailsOfEvent({ details }: Schemas["PastEvent"]): string {
  const { status, msg, ...others } = details;
  const told = status === "success" ? others : { ...(msg === undefined ? {} : { msg }), ...others };
  return Object.entries(told)
    .filter(([, value]) => value !== null)
    .map(([field, value]) => `${field.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
    .join(", ")
    .slice(0, 2000);
}

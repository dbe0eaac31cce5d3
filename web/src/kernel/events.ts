/** Events of the server, as far as they are about one kernel. */

export interface KernelEvent {
  readonly key: string;
  readonly at: string;
  readonly name: string;
  readonly details: string;
}

export const MOST_EVENTS = 200;

const NAMES: Readonly<Record<string, string>> = {
  ready: "Ready",
  dead: "Dead",
  automatic_restart: "Restarted by itself",
  ends_soon: "Ends soon",
  culled: "Culled",
  shut_down_by_client: "Shut down by a client",
  usage: "Usage",
  start: "Started",
  interrupt: "Interrupted",
  restart: "Restarted",
  shutdown: "Shut down",
};

const LEFT_OUT = new Set(["kernel_id", "kernel_name", "owner", "event", "action"]);

let count = 0;

/** The event of a frame, if it is one of this kernel; usage, which has a view of its own, is left out. */
export function eventsOf(text: string, kernel: string): KernelEvent | null {
  let event: Record<string, unknown>;
  try {
    event = JSON.parse(text) as Record<string, unknown>;
  } catch {
    return null;
  }
  const name = String(event["event"] ?? event["action"] ?? "");
  if (event["kernel_id"] !== kernel || name === "usage" || name === "") return null;
  count += 1;
  const at = String(event["__timestamp__"] ?? new Date().toISOString());
  const known = NAMES[name] ?? name;
  const status = event["status"] === "error" ? " (failed)" : "";
  return { key: `${at}-${count}`, at, name: known + status, details: detailsOf(event) };
}

function detailsOf(event: Readonly<Record<string, unknown>>): string {
  return Object.entries(event)
    .filter(([field, value]) => !field.startsWith("__") && !LEFT_OUT.has(field) && value !== null)
    .filter(([field]) => field !== "status")
    .map(([field, value]) => `${field.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
    .join(", ")
    .slice(0, 2000);
}

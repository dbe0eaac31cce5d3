/** A message of a kernel, as the API's log tells it (`MessageEvent`). Nothing in it is trusted. */

export interface Header {
  msg_id?: unknown;
  msg_type?: unknown;
  date?: unknown;
}

export interface Said {
  /** Its number in the kernel's log; null where a message comes from elsewhere. */
  readonly seq: number | null;
  readonly channel: string;
  readonly header: Header;
  readonly parent_header: Header;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly content: Readonly<Record<string, unknown>>;
}

/** Text of a field that a kernel has filled: a kernel may put anything there. */
export function text(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map(text).join("");
  return value === undefined || value === null ? "" : JSON.stringify(value);
}

/** An object that a kernel has put into a field, or an empty one. */
export function fields(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {};
}

export function typeOf(message: Said): string {
  return text(message.header.msg_type);
}

export function parentOf(message: Said): string {
  return text(message.parent_header.msg_id);
}

/** When the message was made, as the kernel says; null where that is no date. */
export function timeOf(message: Said): number | null {
  const time = Date.parse(text(message.header.date));
  return Number.isNaN(time) ? null : time;
}

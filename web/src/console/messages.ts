/** Messages of a Jupyter kernel, as the console sends and receives them. */

export type Channel = "shell" | "iopub" | "stdin" | "control";

export type Fields = Record<string, unknown>;

export interface Header {
  msg_id: string;
  msg_type: string;
  session: string;
  username?: string;
  date?: string;
  version?: string;
  subshell_id?: string | null;
}

/** A message that the kernel or the service has sent. */
export interface KernelMessage {
  channel: Channel;
  header: Header;
  /** The header of the request that the message belongs to; `{}` if there is none. */
  parent_header: Partial<Header>;
  metadata: Fields;
  content: Fields;
  /** The message's number in the kernel's log; null for messages that are not in the log. */
  seq: number | null;
}

/** A message on its way to the kernel. */
export interface Request {
  channel: Channel;
  header: Header;
  parent_header: Partial<Header>;
  content: Fields;
}

/** A text field of a message, or `otherwise` where the kernel has sent something else. */
export function text(fields: Fields, name: string, otherwise = ""): string {
  const value = fields[name];
  return typeof value === "string" ? value : otherwise;
}

/** A number of a message, or null where the kernel has sent something else. */
export function numeric(fields: Fields, name: string): number | null {
  const value = fields[name];
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** An object within a message, or an empty one where the kernel has sent something else. */
export function object(fields: Fields, name: string): Fields {
  const value = fields[name];
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Fields)
    : {};
}

/** When a message was made, in milliseconds since 1970; null where its header does not tell. */
export function moment(header: Partial<Header>): number | null {
  const parsed = Date.parse(header.date ?? "");
  return Number.isNaN(parsed) ? null : parsed;
}

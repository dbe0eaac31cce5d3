/** What a transcript consists of: rows, which a list shows. */

/** Where in the log a row's content begins: characters of a message's text may belong to the row before. */
export interface Origin {
  readonly seq: number;
  readonly offset: number;
}

interface Base {
  /** The row's name within its transcript; the same as long as the row is there. */
  readonly key: number;
  /** Counts the row's changes. */
  revision: number;
  /** The numbers of the first and the last of its messages; 0 where they have none. */
  from: number;
  to: number;
  /** The `msg_id` of the request that the row is an answer to. */
  readonly parent: string;
  /** When its first message was made, in milliseconds; null if that is not known. */
  readonly at: number | null;
  /** How many characters the row holds in memory. */
  size: number;
  /** Whether its content has been dropped from memory. It can be read again from the log. */
  dropped: boolean;
}

/** A piece of what was written to stdout or stderr: some lines. */
export interface StreamRow extends Base {
  readonly kind: "stream";
  readonly name: string;
  /** The text, with colours (SGR codes) and no other escape. */
  text: string;
  /** How many line feeds the text has. */
  lines: number;
  /** The style in effect at its beginning. */
  readonly style: string;
  readonly origin: Origin;
}

/** An output in one or more media types; the value of an execution, if it has a count. */
export interface DisplayRow extends Base {
  readonly kind: "display";
  data: Readonly<Record<string, unknown>>;
  metadata: Readonly<Record<string, unknown>>;
  readonly displayId: string | null;
  readonly result: boolean;
  readonly count: number | null;
  /** The message that the content is of: the newest update, or the first message. */
  content: number;
}

/** An error with its traceback, whose lines have colours. */
export interface ErrorRow extends Base {
  readonly kind: "error";
  name: string;
  value: string;
  traceback: string;
}

/** The code of an execution, which begins here. */
export interface CodeRow extends Base {
  readonly kind: "code";
  code: string;
  readonly count: number | null;
}

/** The kernel asks its user for a line. */
export interface InputRow extends Base {
  readonly kind: "input";
  prompt: string;
  readonly password: boolean;
}

/** Messages that the log does not have any more. */
export interface GapRow extends Base {
  readonly kind: "gap";
  readonly messages: number;
  readonly bytes: number;
}

/** Messages that the log has, and that the page has not read: others came behind them too fast. */
export interface PassedRow extends Base {
  readonly kind: "passed";
  readonly messages: number;
}

/** Something that the page tells: the kernel was restarted, the log begins anew. */
export interface NoticeRow extends Base {
  readonly kind: "notice";
  readonly notice: string;
}

/** A message that is too large to be shown unasked. */
export interface LargeRow extends Base {
  readonly kind: "large";
  readonly what: string;
  /** How large the whole is, in characters. */
  readonly whole: number;
  /** How the text begins. */
  head: string;
}

export type Row =
  | StreamRow
  | DisplayRow
  | ErrorRow
  | CodeRow
  | InputRow
  | GapRow
  | PassedRow
  | NoticeRow
  | LargeRow;

/** Rows of a kind whose content can be read again from the log. */
export function canDrop(row: Row): boolean {
  return row.from > 0 && !["gap", "passed", "notice", "input"].includes(row.kind);
}

import { Component, type ComponentChildren } from "preact";

import { bytes, fullMoment, moment, number } from "../components/format";
import { Ansi } from "./Ansi";
import { present } from "./presentation";
import { Rich } from "./Rich";
import type { Row } from "./rows";

interface Props {
  readonly row: Row;
  /** The row's own: it is the same object when it has changed. */
  readonly revision: number;
  /** What can be done with a row whose message is too large to be shown. */
  readonly onFetch?: ((row: Row) => void) | undefined;
  /** What can be done with messages that were passed over. */
  readonly onPassed?: ((row: Row) => void) | undefined;
}

/** One row of a transcript. It is drawn again only when it has changed. */
export class RowView extends Component<Props> {
  override shouldComponentUpdate(next: Props): boolean {
    return next.row !== this.props.row || next.revision !== this.props.revision;
  }

  override render({ row, onFetch, onPassed }: Props): ComponentChildren {
    return (
      <div class={`row row-${row.kind}`} data-seq={row.from}>
        <Moment at={row.at} />
        <div class="row-content">
          {row.dropped ? <p class="muted">Read again from the log …</p> : contentOf(row, onFetch, onPassed)}
        </div>
      </div>
    );
  }
}

function Moment({ at }: { at: number | null }) {
  if (at === null) return <span class="row-time" />;
  const when = new Date(at);
  return (
    <time class="row-time" dateTime={when.toISOString()} title={fullMoment(when)}>
      {moment(when)}
    </time>
  );
}

function contentOf(row: Row, onFetch: Props["onFetch"], onPassed: Props["onPassed"]): ComponentChildren {
  switch (row.kind) {
    case "stream":
      return (
        <pre class={`said ${row.name === "stderr" ? "stderr" : "stdout"}`}>
          {row.name === "stderr" && <span class="visually-hidden">stderr: </span>}
          <Ansi text={withoutLast(row.text)} style={row.style} />
        </pre>
      );
    case "display":
      return (
        <>
          {row.count !== null && <span class="count">Out[{row.count}]</span>}
          <Rich shown={present(row.data, row.metadata)} />
        </>
      );
    case "error":
      return (
        <div class="failed">
          <strong class="error-text">
            {row.name}: {row.value.slice(0, 2000)}
          </strong>
          <pre class="said" tabIndex={0}>
            <Ansi text={row.traceback} />
          </pre>
        </div>
      );
    case "code":
      return (
        <>
          <span class="count">In[{row.count ?? " "}]</span>
          <pre class="code" tabIndex={isHigh(row.code) ? 0 : undefined}>{row.code.length > 20_000 ? `${row.code.slice(0, 20_000)}\n…` : row.code}</pre>
        </>
      );
    case "input":
      return (
        <p class="notice">
          The kernel asks {row.password ? "for a password" : "for a line"}: <q>{row.prompt}</q>
        </p>
      );
    case "gap":
      return (
        <p class="notice gap">
          {number(row.messages)} {row.messages === 1 ? "message is" : "messages are"} missing here (
          {bytes(row.bytes)}): the log does not have them any more.
        </p>
      );
    case "passed":
      return (
        <p class="notice gap">
          {number(row.messages)} {row.messages === 1 ? "message was" : "messages were"} passed over here, as
          they came too fast.{" "}
          {onPassed !== undefined && (
            <button type="button" onClick={() => onPassed(row)}>
              Show them
            </button>
          )}
        </p>
      );
    case "notice":
      return <p class="notice">{row.notice}</p>;
    case "large":
      return (
        <>
          <pre class="said">{row.head}</pre>
          <p class="notice">
            … of a {row.what} message with {bytes(row.whole)}.{" "}
            {onFetch !== undefined && (
              <button type="button" onClick={() => onFetch(row)}>
                Save it as a file
              </button>
            )}
          </p>
        </>
      );
  }
}

/** Whether a code is scrolled: it must be reached by the keyboard then. */
function isHigh(code: string): boolean {
  return code.length > 800 || code.split("\n").length > 8;
}

/** A row that ends in a line feed ends with the line before it: the next row is a new line anyway. */
function withoutLast(text: string): string {
  return text.replace(/\n((?:\x1b\[[0-9;:]*m)*)$/, "$1");
}

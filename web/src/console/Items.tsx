import { Component } from "preact";
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";

import { href } from "../app/router";
import { duration, number } from "../components/format";
import { now } from "../components/now";
import { Outputs } from "../output";
import type { Colored } from "./languages";
import type { CellOutput } from "./outputs";
import type { Cell, CellState, Item } from "./session";

const MAX_CODE = 20_000;

const STATES: Record<CellState, string> = {
  waiting: "waits to be sent",
  sent: "queued",
  unsure: "was sent; whether it has arrived is looked up when the server is back",
  running: "running",
  ok: "",
  error: "failed",
  aborted: "not run, as the one before has failed or the kernel has ended",
  cancelled: "cancelled",
  lost: "ran; how it ended is not known",
};

interface Props {
  readonly kernel: string;
  readonly item: Item<CellOutput>;
  /** The item's own: it is the same object when it has changed. */
  readonly revision: number;
  readonly language: string;
  readonly onWithdraw: (cell: Cell<CellOutput>) => void;
}

/** One item of the list. It is drawn again only when it has changed. */
export class ItemView extends Component<Props> {
  override shouldComponentUpdate(next: Props): boolean {
    const { item, revision, language } = this.props;
    return next.item !== item || next.revision !== revision || next.language !== language;
  }

  override render({ kernel, item, language, onWithdraw }: Props): ComponentChildren {
    const output = item.output;
    const shown = output !== null && (output.rows.length > 0 || output.cut > 0) && (
      <div class="console-output">
        {output.cut > 0 && (
          <p class="notice">
            Output before this is not shown here.{" "}
            <a href={href("kernels", kernel, "output")}>All output of the kernel</a>
          </p>
        )}
        <Outputs rows={output.rows} />
      </div>
    );
    if (item.kind === "note") {
      return (
        <li class="console-note">
          {item.text !== "" && <p class="notice">{item.text}</p>}
          {shown}
        </li>
      );
    }
    return (
      <li class={`console-cell cell-${item.state}`} data-state={item.state}>
        <Code cell={item} language={language} />
        {item.answered.map(({ text, answer }, index) => (
          <p class="console-answer" key={index}>
            <span class="asked">{text.slice(0, 4000)}</span>
            {answer === null ? <span class="muted">answered</span> : <kbd>{answer}</kbd>}
          </p>
        ))}
        {shown}
        <State kernel={kernel} cell={item} onWithdraw={onWithdraw} />
      </li>
    );
  }
}

function Code({ cell, language }: { cell: Cell<CellOutput>; language: string }) {
  return (
    <div class="console-code">
      <span class="count">In[{cell.count ?? (cell.state === "running" ? "*" : " ")}]</span>
      <div>
        {!cell.mine && (
          <p class="muted">by another client{cell.by && ` (${cell.by.slice(0, 100)})`}</p>
        )}
        {cell.code === null ? (
          <p class="muted">This code was sent before the console began to listen.</p>
        ) : (
          <Highlighted code={cell.code} language={language} />
        )}
      </div>
    </div>
  );
}

function Highlighted({ code, language }: { code: string; language: string }) {
  const [pieces, setPieces] = useState<readonly Colored[]>([]);
  const shown = code.length > MAX_CODE ? `${code.slice(0, MAX_CODE)}\n…` : code;
  useEffect(() => {
    let gone = false;
    import("./languages")
      .then(({ highlighted }) => highlighted(shown, language))
      .then(
        (made) => gone || setPieces(made),
        () => {}, // the code is there all the same, without colours
      );
    return () => {
      gone = true;
    };
  }, [shown, language]);
  return (
    <pre class="code">
      {pieces.length === 0
        ? shown
        : pieces.map(({ text, classes }, index) =>
            classes === "" ? text : <span key={index} class={classes}>{text}</span>,
          )}
    </pre>
  );
}

function State(props: {
  kernel: string;
  cell: Cell<CellOutput>;
  onWithdraw: (cell: Cell<CellOutput>) => void;
}) {
  const { kernel, cell } = props;
  const words = cell.prompt === null ? STATES[cell.state] : "waits for an answer, below";
  const { started, ended } = cell;
  const seconds = started !== null && ended !== null ? (ended - started) / 1000 : null;
  if (words === "" && (seconds === null || seconds < 1)) return null;
  return (
    <p class="console-state">
      {words !== "" && <span class={`state-${cell.state}`}>{words}</span>}{" "}
      {cell.state === "running" && started !== null && <Since started={started} />}
      {seconds !== null && <span class="muted">{duration(Math.max(0, seconds))}</span>}{" "}
      {cell.state === "waiting" && (
        <button type="button" class="plain" onClick={() => props.onWithdraw(cell)}>
          Do not run it
        </button>
      )}
      {cell.state === "lost" && (
        <a href={href("kernels", kernel, "executions", cell.id)}>What is known of it</a>
      )}
    </p>
  );
}

/** How long a cell has run, by the reader's clock, which may be off a little from the kernel's. */
function Since({ started }: { started: number }) {
  return (
    <span class="muted">since {duration(Math.max(0, Math.floor((now.value - started) / 1000)))}</span>
  );
}

const STEP = 200;

/** The items, the newest ones at once and earlier ones on demand. */
export function Items(props: Omit<Props, "item" | "revision"> & {
  items: readonly Item<CellOutput>[];
  dropped: number;
}) {
  const { items, dropped, ...rest } = props;
  const [most, setMost] = useState(STEP);
  const hidden = Math.max(0, items.length - most);
  return (
    <>
      {dropped > 0 && hidden === 0 && (
        <p class="notice">
          {number(dropped)} earlier ones are not kept here.{" "}
          <a href={href("kernels", rest.kernel, "executions")}>All executions</a>
        </p>
      )}
      {hidden > 0 && (
        <button type="button" onClick={() => setMost(most + STEP)}>
          Show {number(Math.min(STEP, hidden))} of {number(hidden)} earlier ones
        </button>
      )}
      <ol class="console-items" aria-label="What was run">
        {items.slice(hidden).map((item) => (
          <ItemView key={item.id} item={item} revision={item.revision} {...rest} />
        ))}
      </ol>
    </>
  );
}

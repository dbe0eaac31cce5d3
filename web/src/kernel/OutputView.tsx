import { useCallback, useEffect, useReducer, useState } from "preact/hooks";

import { request } from "../api/client";
import { route } from "../app/router";
import { toast } from "../components/toasts";
import { number } from "../components/format";
import type { Row } from "../output/rows";
import { Transcribed } from "../output/Transcribed";
import type { Following } from "./follower";
import { type From, KernelLog } from "./kernelLog";
import { pathOf, saved } from "./paths";
import { Ticker } from "./ticker";

/** What a kernel says, as it comes. */
export default function OutputView({ id }: { id: string }) {
  const [from, setFrom] = useState<From>(() => fromOf(route.value.query.get("from")));
  const [following, setFollowing] = useState(from === "end");
  const [log, revision] = useLog(id, from, following);
  const onShown = useCallback((first: number, last: number) => log?.see(first, last), [log]);
  const onFetch = useCallback((row: Row) => void save(id, row), [id]);
  const begin = useCallback((next: From): void => {
    setFrom(next);
    setFollowing(next === "end");
  }, []);
  const onPassed = useCallback((row: Row) => begin(row.from - 1), [begin]);
  if (log === null) return <p class="loading">Loading …</p>;
  return (
    <section aria-label="Output" class="output-view">
      <div class="actions bar">
        <button type="button" aria-pressed={from === "beginning"} onClick={() => begin("beginning")}>
          From the beginning
        </button>
        <button type="button" aria-pressed={from === "end"} onClick={() => begin("end")}>
          From the end
        </button>
        <label class="check">
          <input
            type="checkbox"
            checked={following}
            onChange={(event) => setFollowing(event.currentTarget.checked)}
          />{" "}
          Follow
        </label>
        <Live following={log.following} />
      </div>
      {log.earlier > 0 && <Earlier log={log} begin={begin} />}
      <Transcribed
        transcript={log.transcript}
        revision={revision}
        label="Output of the kernel"
        following={following}
        onFollowing={setFollowing}
        onShown={onShown}
        onFetch={onFetch}
        onPassed={onPassed}
      />
      {log.transcript.rows.length === 0 && <p class="muted">Nothing has been said yet.</p>}
      {log.full && (
        <p class="notice" role="status">
          This is as much as the page can list at once; the kernel has said more.{" "}
          <button
            type="button"
            onClick={() => {
              log.goOn();
              setFollowing(true);
            }}
          >
            Go on, without the beginning
          </button>
        </p>
      )}
    </section>
  );
}

function Earlier({ log, begin }: { log: KernelLog; begin: (from: From) => void }) {
  const more = Math.max(log.first - 1, log.begin - 1000);
  return (
    <p class="notice bar">
      {number(log.earlier)} earlier messages are not in this list.{" "}
      <button type="button" onClick={() => begin(more)}>
        Show 1,000 more
      </button>
    </p>
  );
}

const LIVE = {
  connecting: "Connecting …",
  live: "Live",
  passing: "Live, without what comes too fast",
  waiting: "The connection broke; it is tried again.",
  stopped: "",
};

function Live({ following }: { following: Following }) {
  const text = "reason" in following ? following.reason : LIVE[following.state];
  return (
    <span role="status" class={`live live-${following.state}`}>
      {text}
    </span>
  );
}

function fromOf(text: string | null): From {
  if (text === "beginning") return text;
  const after = Number(text);
  return text !== null && text !== "" && Number.isSafeInteger(after) && after >= 0 ? after : "end";
}

/** The log of a kernel, read from somewhere on; and a number that changes with what was read. */
function useLog(id: string, from: From, following: boolean): [KernelLog | null, number] {
  const [log, setLog] = useState<KernelLog | null>(null);
  const [revision, draw] = useReducer<number, undefined>((count) => count + 1, 0);
  useEffect(() => {
    const ticker = new Ticker(() => {
      next.tick();
      draw(undefined);
    });
    const next = new KernelLog(pathOf(id, "messages"), { fetch: request }, () => ticker.wake());
    setLog(next);
    void next.open(from);
    return () => {
      next.stop();
      ticker.stop();
    };
  }, [id, from]);
  if (log !== null) log.atEnd = following;
  return [log, revision];
}

/** Save a message that is too large for the page as a file. */
async function save(id: string, row: Row): Promise<void> {
  try {
    const response = await request(pathOf(id, `messages?after=${row.from - 1}&limit=1`));
    if (!response.ok) throw new Error(response.statusText);
    saved(await response.blob(), `message-${row.from}.json`);
  } catch {
    toast("The message could not be read.", { kind: "error" });
  }
}

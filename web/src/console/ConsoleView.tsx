import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

import { href } from "../app/router";
import { token } from "../app/token";
import { duration } from "../components/format";
import { now } from "../components/now";
import { toast } from "../components/toasts";
import { Outputs, Transcript } from "../output";
import type { Link } from "./connection";
import { Console } from "./console";
import { CodeInput, Question } from "./Dock";
import type { DockActions } from "./Dock";
import { Items } from "./Items";
import { channels, interrupted, worldOf } from "./world";
import "./console.css";

/** A console of one kernel. */
export default function ConsoleView({ id }: { id: string }) {
  const [told, setTold] = useState("");
  const console = useConsole(id, setTold);
  const [inspected, setInspected] = useState<Transcript | null>(null);
  const { session, link } = console;
  const asking = session.asking;
  const mayRun = console.wasOpen && !(link.is === "over" && link.why === "forbidden");

  const interrupt = () => {
    void interrupted(id).then((problem) => problem && toast(problem, { kind: "error" }));
  };
  const actions: DockActions = {
    inspect: (code, index) => {
      const detail = inspected === null ? 0 : 1;
      void console.inspect(code, index, detail).then((text) => {
        if (text === null) setTold("The kernel is busy: it tells nothing now.");
        else if (text === "") setTold("The kernel knows nothing of this.");
        else setInspected(transcriptOf(text));
      });
    },
    dismiss: () => {
      setInspected(null);
      return inspected !== null;
    },
    interrupt: () => {
      if (!session.busy) return false;
      interrupt();
      return true;
    },
    clear: () => console.clear(),
    told: setTold,
  };
  return (
    <section class="console" aria-label="Console" ref={useHeight()}>
      <div class="console-bar">
        <Connection id={id} console={console} link={link} kernel={session.kernel} busy={session.busy} />
        {mayRun && (
          <div class="actions">
            <button type="button" onClick={() => console.clear()}>
              Clear
            </button>
          </div>
        )}
      </div>
      <Scroller>
        <Items
          kernel={id}
          items={session.items}
          dropped={session.dropped}
          language={console.language}
          onWithdraw={(cell) => console.withdraw(cell)}
        />
      </Scroller>
      {inspected !== null && (
        <Inspection transcript={inspected} onClose={() => setInspected(null)} />
      )}
      <div class="visually-hidden" role="status">
        {told}
      </div>
      {mayRun && asking !== null && (
        <Question
          key={asking.prompt.id}
          prompt={asking.prompt}
          count={asking.cell.count}
          isOpen={link.is === "open"}
          onAnswer={(value) => console.answer(value)}
          onInterrupt={interrupt}
        />
      )}
      {mayRun && (
        <CodeInput
          console={console}
          actions={actions}
          language={console.language}
          hidden={asking !== null}
        />
      )}
    </section>
  );
}

/** A console that lives as long as the view, which is drawn anew when something changes. */
function useConsole(id: string, onEnd: (words: string) => void): Console {
  const console = useMemo(() => new Console(channels(id), worldOf(id)), [id]);
  const [, draw] = useState(0);
  const shown = token.value;
  useEffect(() => {
    console.onChange = () => draw((count) => count + 1);
    console.onEnd = onEnd;
    const save = () => console.save();
    const online = () => console.connect();
    const offline = () => console.connection.cut();
    window.addEventListener("pagehide", save);
    window.addEventListener("online", online);
    window.addEventListener("offline", offline);
    return () => {
      window.removeEventListener("pagehide", save);
      window.removeEventListener("online", online);
      window.removeEventListener("offline", offline);
      console.onChange = () => {};
      console.onEnd = () => {};
      console.close();
    };
  }, [console]);
  useEffect(() => {
    // Another token was given, or the first one: what was refused may be allowed now.
    console.connect();
  }, [console, shown]);
  return console;
}

/** The console reaches down to the end of the window, wherever it begins. */
function useHeight() {
  const element = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const measure = () => {
      const { current } = element;
      if (current === null) return;
      const top = current.getBoundingClientRect().top + window.scrollY;
      current.style.setProperty("--console-top", `${Math.round(top)}px`);
    };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(document.body);
    return () => observer.disconnect();
  }, []);
  return element;
}

function transcriptOf(text: string): Transcript {
  const transcript = new Transcript();
  const header = { msg_id: "inspection", msg_type: "stream" };
  const content = { name: "stdout", text };
  transcript.take([
    { seq: null, channel: "iopub", header, parent_header: {}, metadata: {}, content },
  ]);
  return transcript;
}

const NEAR = 40;

/** A list that stays at its end when it grows, unless the reader has scrolled away from there. */
function Scroller({ children }: { children: ComponentChildren }) {
  const outer = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const [isAway, setAway] = useState(false);
  const follows = useRef(true);
  const toEnd = () => {
    follows.current = true;
    outer.current?.scrollTo({ top: outer.current.scrollHeight });
  };
  useEffect(() => {
    const { current } = inner;
    if (current === null || outer.current === null) return;
    const observer = new ResizeObserver(() => follows.current && toEnd());
    observer.observe(current);
    observer.observe(outer.current);
    return () => observer.disconnect();
  }, []);
  return (
    <div class="console-scroller">
      <div
        ref={outer}
        class="console-list"
        role="region"
        aria-label="Code and output"
        tabIndex={0}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          follows.current = scrollHeight - scrollTop - clientHeight < NEAR;
          setAway(!follows.current);
        }}
      >
        <div ref={inner}>{children}</div>
      </div>
      {isAway && (
        <button type="button" class="console-to-end" onClick={toEnd}>
          To the end
        </button>
      )}
    </div>
  );
}

function Inspection({ transcript, onClose }: { transcript: Transcript; onClose: () => void }) {
  return (
    <div class="console-inspection">
      <div class="console-inspected" role="region" aria-label="What the kernel knows of it" tabIndex={0}>
        <Outputs rows={transcript.rows} />
      </div>
      <button type="button" class="plain" onClick={onClose}>
        Close <span class="visually-hidden">what the kernel knows of it</span>
      </button>
    </div>
  );
}

function Connection(props: { id: string; console: Console; link: Link; kernel: string; busy: boolean }) {
  const { console, link, kernel, busy } = props;
  const words = wordsOf(link, busy ? "busy" : kernel);
  return (
    <p class={`console-link link-${link.is}`}>
      <span role="status">{words}</span>{" "}
      {link.is === "lost" && (
        <>
          <span class="muted">
            since {duration(Math.max(0, Math.floor((now.value - link.since) / 1000)))}
          </span>{" "}
          <button type="button" class="plain" onClick={() => console.connect()}>
            Try now
          </button>
        </>
      )}
      {link.is === "over" && link.why === "replaced" && (
        <button type="button" onClick={() => console.connect()}>
          Continue here
        </button>
      )}
      {link.is === "over" && link.why === "forbidden" && (
        <a href={href("kernels", props.id, "output")}>What the kernel has put out</a>
      )}
    </p>
  );
}

function wordsOf(link: Link, kernel: string): string {
  switch (link.is) {
    case "connecting":
      return "Connecting …";
    case "open":
      return kernel === "" ? "Connected." : `Connected. The kernel is ${kernel}.`;
    case "lost":
      return "The connection is lost. The console goes on by itself; what you enter waits.";
    case "over":
      return link.reason ? `${OVER[link.why].slice(0, -1)}: ${link.reason}.` : OVER[link.why];
  }
}

const OVER = {
  gone: "This kernel is not there any more.",
  replaced: "This console goes on in another tab or window.",
  refused: "The server does not take the token.",
  forbidden: "You may look at this kernel, and not run code in it.",
};

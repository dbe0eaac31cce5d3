import { useEffect, useId, useRef, useState } from "preact/hooks";

import type { Console } from "./console";
import type { Editor } from "./editor";
import type { Prompt } from "./session";

/** What the dock needs of the console's view. */
export interface DockActions {
  inspect(code: string, index: number): void;
  dismiss(): boolean;
  interrupt(): boolean;
  clear(): void;
  told(text: string): void;
}

/** The place where code is typed. It stays in the page while a prompt is shown in its place. */
export function CodeInput(props: {
  console: Console;
  actions: DockActions;
  language: string;
  hidden: boolean;
}) {
  const { console, language, hidden } = props;
  const host = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const actions = useRef(props.actions);
  actions.current = props.actions;
  const [failed, setFailed] = useState(false);
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    let gone = false;
    setFailed(false);
    import("./editor").then(
      ({ openEditor }) => {
        if (gone || host.current === null) return;
        const label = "Code to run. Escape, then Tab, leaves this field.";
        editor.current = openEditor(host.current, console.draft, label, {
          enter: async (code) => {
            const { complete, indent } = await console.isComplete(code);
            if (complete && editor.current?.code === code) run(code);
            return complete ? null : indent;
          },
          run,
          complete: async (code, index) => {
            const found = await console.complete(code, index);
            if (found === null) actions.current.told("The kernel is busy: it completes nothing now.");
            else if (found.options.length === 0) actions.current.told("No completions.");
            return found;
          },
          inspect: (code, index) => actions.current.inspect(code, index),
          dismiss: () => actions.current.dismiss(),
          interrupt: () => actions.current.interrupt(),
          clear: () => actions.current.clear(),
          older: (code) => console.history.older(code),
          newer: (code) => console.history.newer(code),
          changed: (code) => console.type(code),
        });
        editor.current.speak(console.language);
        editor.current.focus();
      },
      () => setFailed(true),
    );
    const run = (code: string) => {
      if (code.trim() === "") return;
      editor.current?.replace("");
      console.type("");
      console.run(code);
    };
    console.onInsert = (code) => {
      if (editor.current?.code === "") editor.current.replace(code);
      editor.current?.focus();
    };
    return () => {
      gone = true;
      console.onInsert = () => {};
      editor.current?.destroy();
      editor.current = null;
    };
  }, [console, attempt]);
  useEffect(() => editor.current?.speak(language), [language]);
  const wasHidden = useRef(hidden);
  useEffect(() => {
    if (wasHidden.current && !hidden) editor.current?.focus();
    wasHidden.current = hidden;
  }, [hidden]);
  return (
    <div class="console-input" hidden={hidden}>
      <div ref={host} class="console-editor" />
      {failed && (
        <p role="alert" class="notice">
          The editor could not be loaded.{" "}
          <button type="button" onClick={() => setAttempt(attempt + 1)}>
            Try again
          </button>
        </p>
      )}
      <button type="button" class="primary" onClick={() => runFrom(console, editor.current)}>
        Run
      </button>
    </div>
  );
}

function runFrom(console: Console, editor: Editor | null): void {
  const code = editor?.code ?? "";
  if (editor === null || code.trim() === "") return;
  editor.replace("");
  console.type("");
  console.run(code);
  editor.focus();
}

/** The kernel asks for a line. This lies in the page's own frame, where no output ever is. */
export function Question(props: {
  prompt: Prompt;
  count: number | null;
  isOpen: boolean;
  onAnswer: (value: string) => boolean;
  onInterrupt: () => void;
}) {
  const { prompt, count, isOpen } = props;
  const field = useId();
  const asked = useId();
  const input = useRef<HTMLInputElement>(null);
  const [value, setValue] = useState("");
  useEffect(() => input.current?.focus(), []);
  return (
    <form
      class="console-question"
      onSubmit={(event) => {
        event.preventDefault();
        props.onAnswer(value);
      }}
    >
      <p>
        <strong>
          The code of In[{count ?? " "}] asks for {prompt.password ? "a password" : "a line"}:
        </strong>{" "}
        <span class="asked" id={asked}>
          {prompt.text.slice(0, 4000)}
        </span>
      </p>
      <label for={field}>{prompt.password ? "Password for the code" : "Answer"}</label>
      <div class="actions">
        <input
          ref={input}
          id={field}
          aria-describedby={asked}
          type={(prompt.password ? "password" : "text") as "text"}
          autocomplete={prompt.password ? "one-time-code" : "off"}
          autocapitalize="off"
          spellcheck={false}
          value={value}
          onInput={(event) => setValue(event.currentTarget.value)}
          onKeyDown={(event) => {
            const { selectionStart, selectionEnd } = event.currentTarget;
            const interrupts = event.key === "c" && event.ctrlKey && selectionStart === selectionEnd;
            if (interrupts) props.onInterrupt();
          }}
        />
        <button class="primary" disabled={!isOpen}>
          Answer
        </button>
        <button type="button" onClick={props.onInterrupt}>
          Interrupt
        </button>
      </div>
    </form>
  );
}

/** The editor of the console: CodeMirror, loaded when it is first needed. */

import {
  acceptCompletion,
  autocompletion,
  closeBrackets,
  closeBracketsKeymap,
  completionKeymap,
  completionStatus,
  startCompletion,
} from "@codemirror/autocomplete";
import type { CompletionContext, CompletionResult } from "@codemirror/autocomplete";
import {
  defaultKeymap,
  history,
  historyKeymap,
  indentLess,
  indentMore,
  insertNewlineAndIndent,
} from "@codemirror/commands";
import {
  bracketMatching,
  HighlightStyle,
  indentOnInput,
  indentUnit,
  syntaxHighlighting,
} from "@codemirror/language";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import type { Extension } from "@codemirror/state";
import { EditorView, keymap, placeholder } from "@codemirror/view";
import type { Command } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import type { Completions } from "./console";
import { support } from "./languages";

/** What the editor asks of the console. */
export interface EditorActions {
  /** Enter: run the code if it is complete. Resolves to the indent of a new line, or null. */
  enter(code: string): Promise<string | null>;
  run(code: string): void;
  complete(code: string, index: number): Promise<Completions | null>;
  inspect(code: string, index: number): void;
  /** Escape; false if there was nothing to close. */
  dismiss(): boolean;
  /** Ctrl-C without a selection; false if nothing runs. */
  interrupt(): boolean;
  clear(): void;
  older(code: string): string | null;
  newer(code: string): string | null;
  changed(code: string): void;
}

export interface Editor {
  readonly code: string;
  replace(code: string): void;
  focus(): void;
  speak(language: string): void;
  destroy(): void;
}

/** Only the page's own colours, which have enough contrast in both themes. */
const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword, tags.modifier], color: "var(--accent)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--good)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--busy)" },
  { tag: tags.comment, color: "var(--muted)", fontStyle: "italic" },
  { tag: [tags.definition(tags.variableName), tags.className], fontWeight: "600" },
  { tag: tags.invalid, color: "var(--bad)" },
]);

const looks = EditorView.theme({
  "&": { color: "var(--text)", backgroundColor: "var(--ground)", maxHeight: "40vh" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", fontSize: "0.92em", lineHeight: "1.5" },
  ".cm-content": { caretColor: "var(--text)", padding: "6px 8px", minHeight: "1.5em" },
  ".cm-line": { padding: "0" },
  ".cm-placeholder": { color: "var(--muted)" },
  ".cm-tooltip": {
    color: "var(--text)",
    backgroundColor: "var(--raised)",
    border: "1px solid var(--control-line)",
  },
  ".cm-tooltip.cm-tooltip-autocomplete > ul": { fontFamily: "var(--mono)", maxHeight: "12em" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": {
    color: "var(--on-accent)",
    backgroundColor: "var(--accent)",
  },
  ".cm-completionDetail": { marginLeft: "1em", fontStyle: "normal", opacity: "0.9" },
  "&.cm-focused .cm-matchingBracket": {
    backgroundColor: "var(--selected)",
    outline: "1px solid var(--control-line)",
  },
});

/**
 * An editor in an element. It lies in a shadow tree: there CodeMirror adopts its style sheets, where
 * in the page it would write a `style` element, which the page's policy forbids.
 */
export function openEditor(
  host: HTMLElement,
  code: string,
  label: string,
  actions: EditorActions,
): Editor {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const language = new Compartment();
  let spoken: string | null = "";
  const view: EditorView = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      doc: code,
      selection: { anchor: code.length },
      extensions: extensions(language, label, actions),
    }),
  });
  return {
    get code() {
      return view.state.doc.toString();
    },
    replace: (text) => replace(view, text),
    focus: () => view.focus(),
    speak: (name) => {
      spoken = name;
      support(name).then(
        (known) => spoken === name && view.dispatch({ effects: language.reconfigure(known) }),
        () => {}, // what is typed has no colours then
      );
    },
    destroy: () => {
      spoken = null;
      view.destroy();
    },
  };
}

function extensions(language: Compartment, label: string, actions: EditorActions): Extension[] {
  return [
    Prec.highest(keymap.of(keys(actions))),
    language.of([]),
    history(),
    indentUnit.of("    "),
    indentOnInput(),
    bracketMatching(),
    closeBrackets(),
    autocompletion({
      override: [(context) => completions(context, actions)],
      activateOnTyping: false,
      icons: false,
      interactionDelay: 0,
      maxRenderedOptions: 200,
    }),
    syntaxHighlighting(colours),
    looks,
    placeholder("Code to run in the kernel"),
    EditorView.lineWrapping,
    EditorView.contentAttributes.of({ "aria-label": label, "aria-multiline": "true" }),
    EditorView.updateListener.of((update) => {
      if (update.docChanged) actions.changed(update.state.doc.toString());
      if (completionStatus(update.state) === "active") letListBeReached(update.view);
    }),
    keymap.of([...closeBracketsKeymap, ...completionKeymap, ...historyKeymap, ...defaultKeymap]),
  ];
}

function keys(actions: EditorActions) {
  const run: Command = (view) => {
    actions.run(view.state.doc.toString());
    return true;
  };
  return [
    { key: "Enter", run: (view: EditorView) => enter(view, actions) },
    { key: "Shift-Enter", run },
    { key: "Ctrl-Enter", run },
    { key: "Alt-Enter", run: insertNewlineAndIndent },
    { key: "Tab", run: tab, shift: (view: EditorView) => shiftTab(view, actions) },
    { key: "Escape", run: (view: EditorView) => completionStatus(view.state) === null && actions.dismiss() },
    { key: "Ctrl-c", run: (view: EditorView) => view.state.selection.main.empty && actions.interrupt() },
    {
      key: "Ctrl-l",
      run: () => {
        actions.clear();
        return true;
      },
    },
    { key: "ArrowUp", run: (view: EditorView) => atEdge(view, "first") && walk(view, actions.older) },
    { key: "ArrowDown", run: (view: EditorView) => atEdge(view, "last") && walk(view, actions.newer) },
  ];
}

/** The list of completions scrolls, so it can have the focus, as whatever scrolls here. */
function letListBeReached(view: EditorView): void {
  view.requestMeasure({
    key: letListBeReached,
    read: () => view.dom.querySelector<HTMLElement>(".cm-tooltip-autocomplete > ul"),
    write: (list) => {
      if (list !== null) list.tabIndex = 0;
    },
  });
}

/** Enter runs what is complete; within several lines it makes a new one. */
function enter(view: EditorView, actions: EditorActions): boolean {
  if (completionStatus(view.state) === "active" && acceptCompletion(view)) return true;
  const { doc, selection } = view.state;
  const code = doc.toString();
  if (code.trim() === "") return true;
  if (!selection.main.empty || doc.lineAt(selection.main.head).number < doc.lines)
    return insertNewlineAndIndent(view);
  void actions.enter(code).then((indent) => {
    if (indent === null || view.state.doc !== doc) return; // it runs, or was edited meanwhile
    if (indent === "") insertNewlineAndIndent(view);
    else view.dispatch(view.state.replaceSelection(`\n${indent}`));
  });
  return true;
}

/** Tab completes behind something, and indents at the beginning of a line. */
function tab(view: EditorView): boolean {
  const { doc, selection } = view.state;
  if (completionStatus(view.state) === "active") return acceptCompletion(view);
  const line = doc.lineAt(selection.main.head);
  const before = line.text.slice(0, selection.main.head - line.from);
  if (!selection.main.empty) return indentMore(view);
  if (before.trim() !== "") return startCompletion(view);
  view.dispatch(view.state.replaceSelection("    "));
  return true;
}

/** Shift-Tab shows what the kernel knows of a name, and takes indent back at the beginning of a line. */
function shiftTab(view: EditorView, actions: EditorActions): boolean {
  const { doc, selection } = view.state;
  const line = doc.lineAt(selection.main.head);
  const before = line.text.slice(0, selection.main.head - line.from);
  if (!selection.main.empty || before.trim() === "") return indentLess(view);
  actions.inspect(doc.toString(), selection.main.head);
  return true;
}

function atEdge(view: EditorView, edge: "first" | "last"): boolean {
  const { doc, selection } = view.state;
  if (!selection.main.empty || completionStatus(view.state) === "active") return false;
  const here = view.coordsAtPos(selection.main.head);
  const there = view.coordsAtPos(edge === "first" ? 0 : doc.length);
  return here !== null && there !== null && Math.abs(here.top - there.top) < 4;
}

function walk(view: EditorView, step: (code: string) => string | null): boolean {
  const found = step(view.state.doc.toString());
  if (found === null) return false;
  replace(view, found);
  return true;
}

function replace(view: EditorView, text: string): void {
  view.dispatch({
    changes: { from: 0, to: view.state.doc.length, insert: text },
    selection: { anchor: text.length },
    scrollIntoView: true,
  });
}

async function completions(
  context: CompletionContext,
  actions: EditorActions,
): Promise<CompletionResult | null> {
  const found = await actions.complete(context.state.doc.toString(), context.pos);
  if (found === null || context.aborted || found.options.length === 0) return null;
  const { from, to, options } = found;
  const [only, second] = options;
  if (only !== undefined && second === undefined && context.view) {
    const selection = { anchor: from + only.label.length };
    context.view.dispatch({ changes: { from, to, insert: only.label }, selection });
    return null;
  }
  const listed = options.map(({ label, type }) => ({ label, ...(type && { detail: type }) }));
  return { from, to, options: listed, filter: from <= context.pos, validFor: /^[\w.]*$/ };
}

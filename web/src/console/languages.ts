/** The languages that code is highlighted in, each loaded when a kernel speaks it. */

import { type Language, StreamLanguage, type StreamParser } from "@codemirror/language";
import type { Extension } from "@codemirror/state";
import { classHighlighter, highlightCode } from "@lezer/highlight";

const MAX_HIGHLIGHTED = 50_000;

type Load = () => Promise<Language>;

function mode<M>(load: () => Promise<M>, chosen: (loaded: M) => StreamParser<unknown>): Load {
  return async () => StreamLanguage.define(chosen(await load()));
}

const C_LIKE = () => import("@codemirror/legacy-modes/mode/clike");
const SCRIPT = () => import("@codemirror/legacy-modes/mode/javascript");
const ML_LIKE = () => import("@codemirror/legacy-modes/mode/mllike");
const SHELL = mode(() => import("@codemirror/legacy-modes/mode/shell"), ({ shell }) => shell);

const LOADS: Readonly<Record<string, Load>> = {
  python: async () => (await import("@codemirror/lang-python")).pythonLanguage,
  bash: SHELL,
  c: mode(C_LIKE, ({ c }) => c),
  "c++": mode(C_LIKE, ({ cpp }) => cpp),
  "c#": mode(C_LIKE, ({ csharp }) => csharp),
  "f#": mode(ML_LIKE, ({ fSharp }) => fSharp),
  go: mode(() => import("@codemirror/legacy-modes/mode/go"), ({ go }) => go),
  haskell: mode(() => import("@codemirror/legacy-modes/mode/haskell"), ({ haskell }) => haskell),
  java: mode(C_LIKE, ({ java }) => java),
  javascript: mode(SCRIPT, ({ javascript }) => javascript),
  julia: mode(() => import("@codemirror/legacy-modes/mode/julia"), ({ julia }) => julia),
  kotlin: mode(C_LIKE, ({ kotlin }) => kotlin),
  lua: mode(() => import("@codemirror/legacy-modes/mode/lua"), ({ lua }) => lua),
  ocaml: mode(ML_LIKE, ({ oCaml }) => oCaml),
  octave: mode(() => import("@codemirror/legacy-modes/mode/octave"), ({ octave }) => octave),
  r: mode(() => import("@codemirror/legacy-modes/mode/r"), ({ r }) => r),
  ruby: mode(() => import("@codemirror/legacy-modes/mode/ruby"), ({ ruby }) => ruby),
  rust: mode(() => import("@codemirror/legacy-modes/mode/rust"), ({ rust }) => rust),
  scala: mode(C_LIKE, ({ scala }) => scala),
  typescript: mode(SCRIPT, ({ typescript }) => typescript),
};

/** Other names that kernels give their language. */
const SAME: Readonly<Record<string, string>> = {
  ipython: "python", matlab: "octave", sh: "bash", zsh: "bash", cpp: "c++", csharp: "c#", fsharp: "f#", node: "javascript",
};

/** The name by which a language is known here: that of a kernel may have a version behind it. */
export function known(name: string): string | null {
  const plain = name.trim().toLowerCase().replace(/[\d.]+$/, "");
  const found = SAME[plain] ?? plain;
  return Object.hasOwn(LOADS, found) ? found : null;
}

const loaded = new Map<string, Promise<Language>>();

function load(name: string): Promise<Language> | null {
  const found = known(name);
  const start = found === null ? undefined : LOADS[found];
  if (found === null || start === undefined) return null;
  let loading = loaded.get(found);
  if (loading === undefined) {
    loading = start();
    loaded.set(found, loading);
    loading.catch(() => loaded.delete(found)); // the next one tries again
  }
  return loading;
}

/** What an editor has to know of a language; nothing for one that is not known. Raises if it cannot be loaded. */
export async function support(name: string): Promise<Extension> {
  return (await load(name)) ?? [];
}

export interface Colored {
  readonly text: string;
  readonly classes: string;
}

/** Code with the classes of its highlighting; a piece without any has the class "". */
export async function highlighted(code: string, name: string): Promise<readonly Colored[]> {
  const language = code.length > MAX_HIGHLIGHTED ? null : await load(name);
  if (language === null) return [{ text: code, classes: "" }];
  const pieces: Colored[] = [];
  highlightCode(
    code,
    language.parser.parse(code),
    classHighlighter,
    (text, classes) => pieces.push({ text, classes }),
    () => pieces.push({ text: "\n", classes: "" }),
  );
  return pieces;
}

import { expect, test } from "vitest";

import { highlighted, known } from "./languages";

test("kernels' names of their languages are known, with a version and without", () => {
  const names = ["python", "ipython3", "python3.12", "R", "C++17", "bash", "Julia", "Rust", "fake", "", "constructor"];
  expect(names.map(known)).toEqual(["python", "python", "python", "r", "c++", "bash", "julia", "rust", null, null, null]);
});

test("each language tells keywords, strings and comments from the rest", async () => {
  const codes: Record<string, string> = {
    python: "def f(): return 'a' # c",
    r: "if (TRUE) 'a' # c",
    julia: 'function f() "a" end # c',
    bash: "if true; then echo 'a'; fi # c",
    "c++": 'return "a"; // c',
    java: 'return "a"; // c',
    javascript: 'return "a"; // c',
    typescript: 'return "a"; // c',
    scala: 'def f = "a" // c',
    kotlin: 'fun f() = "a" // c',
    "c#": 'return "a"; // c',
    "f#": 'let f = "a" (* c *)',
    c: 'return "a"; // c',
    go: 'func f() { return "a" } // c',
    haskell: 'f = if True then "a" else "b" -- c',
    lua: "return 'a' -- c",
    ocaml: 'let f = "a" (* c *)',
    octave: "if true 'a' end % c",
    ruby: "def f() 'a' end # c",
    rust: 'fn f() { return "a"; } // c',
  };
  for (const [language, code] of Object.entries(codes)) {
    const pieces = await highlighted(code, language);
    expect(pieces.map(({ text }) => text).join(""), language).toBe(code);
    for (const kind of ["keyword", "string", "comment"]) {
      expect(pieces.some(({ classes }) => classes.includes(`tok-${kind}`)), `${kind} of ${language}`).toBe(true);
    }
  }
});

test("of a language that is not known, and of very long code, nothing is highlighted", async () => {
  expect(await highlighted("if x", "fake")).toEqual([{ text: "if x", classes: "" }]);
  const long = "x = 1\n".repeat(20_000);
  expect(await highlighted(long, "python")).toEqual([{ text: long, classes: "" }]);
});

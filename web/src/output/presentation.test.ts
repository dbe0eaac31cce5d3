import { expect, test } from "vitest";

import { coloured, fromPalette, MOST_PIECES } from "./colours";
import { contrast, legible } from "./contrast";
import { pixelsOf } from "./pixels";
import { demand, present } from "./presentation";

test("the richest form that can be shown is taken", () => {
  const plain = { "text/plain": "p" };
  expect(present(plain)).toEqual({ kind: "text", source: "p" });
  expect(present({ ...plain, "text/html": ["<b>", "x"] })).toEqual({ kind: "frame", language: "html", source: "<b>x" });
  expect(present({ ...plain, "image/svg+xml": "<svg/>" })).toMatchObject({ language: "svg" });
  expect(present({ ...plain, "application/javascript": "1" })).toMatchObject({ language: "javascript" });
  expect(present({ ...plain, "text/markdown": "# x" })).toMatchObject({ kind: "markdown" });
  expect(present({ ...plain, "text/latex": "$x$" })).toMatchObject({ kind: "latex" });
  expect(present({ "application/json": { a: 1 } })).toMatchObject({ kind: "json", source: '{\n  "a": 1\n}' });
  expect(present({ ...plain, "application/vnd.jupyter.widget-view+json": {}, "text/html": "x" })).toMatchObject({ kind: "elsewhere", what: "A widget" });
  expect(present({ ...plain, "application/x-own": 1 })).toMatchObject({ kind: "elsewhere", what: "application/x-own" });
  expect(present({})).toEqual({ kind: "text", source: "" });
});

test("an image is one only if its data could be", () => {
  expect(present({ "image/png": "AAAA" }, { "image/png": { width: 5, height: -1 } })).toMatchObject({ kind: "image", width: 5, height: null });
  expect(present({ "image/png": 'x" onerror="alert(1)' })).toMatchObject({ kind: "elsewhere" });
});

test("what is large is not shown unasked", () => {
  expect(demand({ kind: "frame", language: "html", source: "x".repeat(1_000_000) })).toBe("large");
  expect(demand({ kind: "frame", language: "html", source: "x".repeat(17_000_000) })).toBe("too large");
  expect(demand({ kind: "text", source: "x" })).toBeNull();
});

test("a small file with many pixels is large", () => {
  const head = new Uint8Array(40);
  head.set([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10, 0, 0, 0, 13, 0x49, 0x48, 0x44, 0x52, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
  const base64 = btoa(String.fromCharCode(...head));
  expect(pixelsOf("image/png", base64)).toBe(65_535 ** 2);
  expect(demand({ kind: "image", type: "image/png", base64, width: null, height: null })).toBe("large");
  expect(pixelsOf("image/jpeg", base64)).toBeNull();
  expect(pixelsOf("image/png", "%%%")).toBeNull();
});

test("colours become classes and colours, and nothing else", () => {
  expect(coloured("a\x1b[31mb\x1b[0mc").map(({ text, classes }) => [text, classes])).toEqual([["a", ""], ["b", "ansi-red"], ["c", ""]]);
  expect(coloured("x", "\x1b[1;44m")).toMatchObject([{ text: "x", classes: "ansi-on-blue ansi-bold" }]);
  expect(coloured("\x1b[38;2;1;2;3mx")).toMatchObject([{ color: "rgb(1, 2, 3)" }]);
  expect(coloured("\x1b[38;2;999;2;3mx\x1b[48;5;208my").at(-1)).toMatchObject({ background: fromPalette(208) });
  expect(coloured("<img src=x onerror=alert(1)>")).toMatchObject([{ text: "<img src=x onerror=alert(1)>" }]);
});

test("an ANSI bomb has a bounded number of pieces, and all its text", () => {
  const pieces = coloured("\x1b[31mx\x1b[32my".repeat(100_000));
  expect(pieces.length).toBeLessThan(2 * MOST_PIECES + 2);
  expect(pieces.map((piece) => piece.text).join("")).toBe("xy".repeat(100_000));
});

test("no colour of a kernel hides its text", () => {
  for (const color of ["rgb(0, 0, 0)", "rgb(255, 255, 255)", "rgb(120, 120, 120)", "rgb(255, 0, 0)", "rgb(0, 0, 255)"]) {
    for (const background of [null, color, "rgb(128, 128, 128)"]) {
      const shown = legible(color, background);
      expect(contrast(shown.color ?? "", shown.backgroundColor ?? "")).toBeGreaterThan(4.2);
    }
  }
});

import { expect, test } from "vitest";

import { looksComplete } from "./completeness";
import { History, inputsOf } from "./history";
import { toCodePoints, toIndex } from "./positions";
import { parse, serialize } from "./saved";

test.each([
  ["", 0, 0],
  ["abc", 2, 2],
  ["😀a", 2, 1],
  ["😀a", 3, 2],
  ["é😀😀x", 5, 3],
])("positions in %j", (code, index, codePoints) => {
  expect(toCodePoints(code, index)).toBe(codePoints);
  expect(toIndex(code, codePoints)).toBe(index);
});

test("a position behind the end is the end", () => {
  expect(toIndex("😀", 9)).toBe(2);
  expect(toCodePoints("😀", 9)).toBe(1);
});

test.each([
  "1 + 1",
  "x = [1,\n 2]",
  "for i in x:\n    print(i)\n",
  "if a: b()",
  "'a:'",
  "f(')')",
  '"""a\nb"""',
  "'not closed",
  "x)",
  "a # (",
])("%j looks complete", (code) => {
  expect(looksComplete(code)).toBe(true);
});

test.each([
  "for i in x:",
  "for i in x:  # why",
  "for i in x:\n    print(i)",
  "f(1,",
  "x = [1, '(]'",
  '"""a\nb',
  "a + \\",
  "@decorated",
  "{'a': (1",
])("%j looks incomplete", (code) => {
  expect(looksComplete(code)).toBe(false);
});

test("the way through the history and back to what was typed", () => {
  const history = new History();
  history.add("first");
  history.add("second");
  history.add("second");
  history.load(["zeroth", "first"]);
  expect(history.older("")).toBe("second");
  expect(history.older("second")).toBe("first");
  expect(history.older("first")).toBe("zeroth");
  expect(history.older("zeroth")).toBeNull();
  expect(history.newer("zeroth")).toBe("first");
  expect(history.newer("first")).toBe("second");
  expect(history.newer("second")).toBe("");
  expect(history.newer("")).toBeNull();
});

test("what was typed says which entries are meant, and is not lost", () => {
  const history = new History();
  for (const code of ["import a", "x = 1", "import b"]) history.add(code);
  expect(history.older("imp")).toBe("import b");
  expect(history.older("import b")).toBe("import a");
  expect(history.older("import a")).toBeNull();
  expect(history.newer("import a")).toBe("import b");
  expect(history.newer("import b")).toBe("imp");
});

test("the inputs of a history reply", () => {
  expect(inputsOf([[1, 1, "a"], [1, 2, ["b", "out"]], [1, 3, null], 4])).toEqual(["a", "b"]);
  expect(inputsOf(undefined)).toEqual([]);
});

test("what is stored is read again, and nothing else", () => {
  const saved = {
    session: "s",
    start: { epoch: "e", seq: 4 },
    draft: "dr",
    pending: [{ id: "a", code: "1", sent: true }],
  };
  expect(parse(serialize(saved))).toEqual(saved);
  expect(parse(null)).toBeNull();
  expect(parse("{")).toBeNull();
  expect(parse('{"session": 1}')).toBeNull();
  const nothing = { session: "s", start: null, draft: "", pending: [] };
  expect(parse('{"session": "s", "start": 1, "draft": 2, "pending": [3]}')).toEqual(nothing);
  const large = { ...saved, draft: "x".repeat(2_000_000) };
  expect(serialize(large).length).toBeLessThan(1000);
});

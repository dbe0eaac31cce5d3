import { expect, test } from "vitest";

import { foldLine, foldText, MAX_CELLS, styleAtEnd, styled } from "./terminal";

const RED = "\x1b[31m";
const RESET = "\x1b[0m";

test("a line without anything special stays as it is", () => {
  expect(foldLine("plain\ttext")).toEqual({ shown: "plain\ttext", state: "plain\ttext" });
});

test("what a carriage return leads back to is overwritten, and no more", () => {
  expect(foldLine("progress 10%\rprogress 20%").shown).toBe("progress 20%");
  expect(foldLine("longer\rab").shown).toBe("abnger");
  expect(foldLine("done\r").shown).toBe("done");
});

test("a line goes on where it stopped, wherever a message was cut", () => {
  const whole = `a${RED}bc\rx\b\byz\x1b[Kq${RESET}r\r12`;
  const { shown } = foldLine(whole);
  for (let at = 0; at <= whole.length; at += 1) {
    const first = foldLine(whole.slice(0, at));
    expect(foldLine(first.state + whole.slice(at)).shown, `cut at ${at}`).toBe(shown);
  }
});

test("backspaces lead back, and not beyond the beginning", () => {
  expect(foldLine("\b\bab\bc").shown).toBe("ac");
});

test("erasing the line takes what is behind, before, or all", () => {
  expect(foldLine("abcdef\rab\x1b[K").shown).toBe("ab");
  expect(foldLine("abc\b\x1b[1Kx").shown).toBe("  x");
  expect(foldLine("abc\x1b[2K\rxy").shown).toBe("xy");
});

test("colours go with their characters", () => {
  expect(foldLine(`${RED}red${RESET}\rb`).shown).toBe(`b${RED}ed${RESET}`);
  expect(foldLine(`a\r${RED}b`).shown).toBe(`${RED}b`);
});

test("escapes that are no colours are left out: cursors, titles, links, queries", () => {
  expect(foldLine("a\x1b[2Ab\x1b[10;5Hc\x1b[?25ld").shown).toBe("abcd");
  expect(foldLine("a\x1b]0;title\x07b").shown).toBe("ab");
  expect(foldLine("\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07").shown).toBe("link");
  expect(foldLine("a\x1b(Bb\x1bcd\x00\x07e\x9bf").shown).toBe("abdef");
});

test("an endless line and endless codes take bounded room", () => {
  expect(foldLine(`\r${"x".repeat(3 * MAX_CELLS)}`).shown.length).toBe(MAX_CELLS);
  let style = "";
  for (let code = 0; code < 10_000; code += 1) style = styled(style, `38;5;${code % 256}`);
  expect(style.length).toBeLessThan(200);
  const bomb = `\r${`${RED}a\x1b[1m`.repeat(5000)}`;
  expect(foldLine(bomb).shown.length).toBeLessThan(bomb.length + 5000 * 200);
});

test("a text is folded line by line, and its colour goes on", () => {
  expect(foldText(`${RED}one\ntwo\rTW\n${RESET}three`)).toBe(`${RED}one\nTWo\n${RESET}three`);
  expect(styleAtEnd(`a${RED}b${RESET}c`, "")).toBe("");
  expect(styleAtEnd(`a${RED}b`, "\x1b[1m")).toBe(`\x1b[1m${RED}`);
});

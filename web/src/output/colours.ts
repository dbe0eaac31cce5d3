/** Text with SGR codes, as pieces with a class and colours; bounded, whatever the text holds. */

import Anser from "anser";

export interface Coloured {
  readonly text: string;
  readonly classes: string;
  /** Colours that have no class: `rgb(1, 2, 3)`. */
  readonly color: string | null;
  readonly background: string | null;
}

/** Of a text with more pieces, what is behind these has no colours. */
export const MOST_PIECES = 1000;

const CODES = /\x1b\[[0-9;:]*m/g;
const ANY = /\x1b\[[0-9;:]*m|\x1b/g;
const TRUE_COLOUR = /^\d{1,3}, ?\d{1,3}, ?\d{1,3}$/;

export function plain(text: string): string {
  return text.replace(ANY, "");
}

/** `style` is in effect at the beginning. */
export function coloured(text: string, style = ""): readonly Coloured[] {
  const whole = style + text;
  if (!whole.includes("\x1b")) return [{ text: whole, classes: "", color: null, background: null }];
  const end = endOfPieces(whole);
  // Anser takes 38:5:1 for no colour at all; terminals take it for 38;5;1.
  const head = whole.slice(0, end).replace(CODES, (code) => code.replaceAll(":", ";"));
  const pieces = Anser.ansiToJson(head, { json: true, remove_empty: true, use_classes: true }).map(
    (piece) => ({
      text: plain(piece.content),
      classes: classesOf(piece),
      color: trueColour(piece.fg, piece.fg_truecolor),
      background: trueColour(piece.bg, piece.bg_truecolor),
    }),
  );
  if (end < whole.length) {
    pieces.push({ text: plain(whole.slice(end)), classes: "", color: null, background: null });
  }
  return pieces;
}

function endOfPieces(text: string): number {
  let count = 0;
  for (const code of text.matchAll(CODES)) {
    count += 1;
    if (count > MOST_PIECES) return code.index;
  }
  return text.length;
}

function classesOf(piece: Anser.AnserJsonEntry): string {
  const classes = [piece.fg, piece.bg && piece.bg.replace(/^ansi-/, "ansi-on-"), ...piece.decorations.map((one) => `ansi-${one}`)];
  // Anser makes the names; none that holds anything else is let through.
  return classes.filter((name) => name && /^ansi-[a-z0-9-]+$/.test(name) && !name.includes("truecolor")).join(" ");
}

function trueColour(name: string | null, colour: string | null): string | null {
  if (name === "ansi-truecolor" && colour && TRUE_COLOUR.test(colour)) return `rgb(${colour})`;
  const palette = /^ansi-palette-(\d+)$/.exec(name ?? "");
  return palette === null ? null : fromPalette(Number(palette[1]));
}

/** Colours 16 to 255, as xterm has them. */
export function fromPalette(number: number): string | null {
  if (number < 16 || number > 255) return null;
  if (number >= 232) {
    const grey = 8 + 10 * (number - 232);
    return `rgb(${grey}, ${grey}, ${grey})`;
  }
  const level = (index: number): number => (index === 0 ? 0 : 55 + 40 * index);
  const cube = number - 16;
  return `rgb(${level(Math.floor(cube / 36))}, ${level(Math.floor(cube / 6) % 6)}, ${level(cube % 6)})`;
}

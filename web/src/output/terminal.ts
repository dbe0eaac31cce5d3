/**
 * Folds what a terminal would overwrite: carriage returns, backspaces, "erase the line".
 *
 * What is left has colours (SGR codes) and no other escape. Each function is pure, and takes time in
 * proportion to its text whatever a kernel has written.
 */

// An escape that the text's end has cut: the next message may bring the rest.
const CUT = /\x1b(?:\[[0-9;:?<=>!]{0,64}|\][^\x07\x1b]{0,256}|[()#%])?$/;

const TOKEN =
  /\x1b\[([0-9;:]{0,64})m|\x1b\[([0-9;:?<=>! ]{0,64})([@-~])|\x1b\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|\x1b[()#%][^]?|\x1b[^[\]]?|[\r\b]|[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]|[^\x00-\x08\x0b-\x1f\x7f-\x9f]+/gu;

const SPECIAL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/;
const SGR = /\x1b\[([0-9;:]{0,64})m/g;

/** Styles that are set one by one and never taken back are forgotten beyond this length. */
const MAX_STYLE = 160;

/** The longest line that is folded cell by cell; of a longer one, what is behind is left out. */
export const MAX_CELLS = 20_000;

/** The style in effect behind a code: the codes since the last reset. */
export function styled(style: string, codes: string): string {
  const list = codes.split(";");
  const reset = list[0] === "0" || list[0] === "" ? 0 : -1;
  // "38;5;0" holds a zero that is a colour: only a leading zero is a reset for certain.
  if (reset === 0) {
    const rest = list.slice(1).join(";");
    return rest === "" ? "" : `\x1b[${rest}m`;
  }
  const both = `${style}\x1b[${codes}m`;
  return both.length <= MAX_STYLE ? both : `\x1b[${codes}m`;
}

/** The style in effect at the end of a text that began with `style`. */
export function styleAtEnd(text: string, style: string): string {
  if (!text.includes("\x1b")) return style;
  let now = style;
  for (const match of text.matchAll(SGR)) now = styled(now, match[1] ?? "");
  return now;
}

export interface Folded {
  /** What a terminal would show. */
  readonly shown: string;
  /** What the line is to be continued from: `foldLine(state + more)` goes on where it stopped. */
  readonly state: string;
}

interface Cell {
  readonly character: string;
  readonly style: string;
}

function written(cells: readonly Cell[], from: string, to: string): string {
  let now = from;
  let line = "";
  const change = (style: string): void => {
    if (style === now) return;
    line += style.startsWith(now) ? style.slice(now.length) : `\x1b[0m${style}`;
    now = style;
  };
  for (const cell of cells) {
    change(cell.style);
    line += cell.character;
  }
  change(to);
  return line;
}

class Line {
  private readonly cells: Cell[] = [];
  private column = 0;
  private style: string;

  constructor(private readonly first: string) {
    this.style = first;
  }

  put(characters: string): void {
    for (const character of characters) {
      if (this.column >= MAX_CELLS) return;
      while (this.cells.length < this.column) this.cells.push({ character: " ", style: "" });
      this.cells[this.column] = { character, style: this.style };
      this.column += 1;
    }
  }

  take(token: RegExpMatchArray): void {
    const whole = token[0];
    if (token[1] !== undefined) this.style = styled(this.style, token[1]);
    else if (token[3] === "K") this.erase(token[2] ?? "");
    else if (whole === "\r") this.column = 0;
    else if (whole === "\b") this.column = Math.max(0, this.column - 1);
    else if (!SPECIAL.test(whole.charAt(0))) this.put(whole);
  }

  private erase(how: string): void {
    if (how === "2") this.cells.length = 0;
    else if (how === "1") {
      const blank = { character: " ", style: "" };
      this.cells.fill(blank, 0, Math.min(this.column, this.cells.length));
    } else this.cells.length = Math.min(this.cells.length, this.column);
  }

  folded(cut: string): Folded {
    const shown = written(this.cells, this.first, this.style);
    if (this.column === this.cells.length) return { shown, state: shown + cut };
    // The cursor stands within the line: a return and the cells before it bring it there again.
    const all = written(this.cells, this.first, this.first);
    const before = written(this.cells.slice(0, this.column), this.first, this.style);
    return { shown, state: `${all}\r${before}${cut}` };
  }
}

/** Fold one line, without its line feed; `style` is in effect at its beginning. */
export function foldLine(raw: string, style = ""): Folded {
  if (!SPECIAL.test(raw)) return { shown: raw, state: raw };
  const cut = CUT.exec(raw)?.[0] ?? "";
  const line = new Line(style);
  for (const token of raw.slice(0, raw.length - cut.length).matchAll(TOKEN)) line.take(token);
  return line.folded(cut);
}

/** Fold a whole text of several lines. */
export function foldText(raw: string, style = ""): string {
  if (!SPECIAL.test(raw)) return raw;
  let now = style;
  const lines = raw.split("\n").map((line) => {
    const { shown } = foldLine(line, now);
    now = styleAtEnd(shown, now);
    return shown;
  });
  return lines.join("\n");
}

/** Which of an output's media types is shown, and how. */

import { pixelsOf } from "./pixels";
import { text } from "./said";

export type Presentation =
  | { readonly kind: "image"; readonly type: string; readonly base64: string; readonly width: number | null; readonly height: number | null }
  | { readonly kind: "frame"; readonly language: FrameLanguage; readonly source: string }
  | { readonly kind: "markdown" | "latex" | "text" | "json"; readonly source: string }
  | { readonly kind: "elsewhere"; readonly what: string; readonly source: string };

export type FrameLanguage = "html" | "svg" | "javascript";

/** What is larger, in characters, is shown when it is asked for. */
const UNASKED: Readonly<Record<Presentation["kind"], number>> = {
  image: 8 * 2 ** 20,
  frame: 256 * 1024,
  markdown: 128 * 1024,
  latex: 16 * 1024,
  text: 64 * 1024,
  json: 64 * 1024,
  elsewhere: 64 * 1024,
};

/** The most that is shown at all; of a text the beginning is. */
export const MOST: Readonly<Record<Presentation["kind"], number>> = {
  image: 64 * 2 ** 20,
  frame: 16 * 2 ** 20,
  markdown: 2 ** 20,
  latex: 64 * 1024,
  text: 2 ** 20,
  json: 2 ** 20,
  elsewhere: 64 * 1024,
};

/** An image of more pixels takes more memory than it is worth, unless somebody asks for it. */
export const MOST_PIXELS = 16_000_000;

const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const WIDGET = "application/vnd.jupyter.widget-view+json";
const BASE64 = /^[A-Za-z0-9+/=\s]*$/;

type Data = Readonly<Record<string, unknown>>;

/** The richest form that this page can show. */
export function present(data: Data, metadata: Data = {}): Presentation {
  const plain = text(data["text/plain"]);
  if (WIDGET in data) return { kind: "elsewhere", what: "A widget", source: plain };
  const rich = frame(data) ?? image(data, metadata);
  if (rich !== null) return rich;
  if ("text/markdown" in data) return { kind: "markdown", source: text(data["text/markdown"]) };
  if ("text/latex" in data) return { kind: "latex", source: text(data["text/latex"]) };
  if ("application/json" in data) {
    return { kind: "json", source: JSON.stringify(data["application/json"], null, 2) ?? "" };
  }
  const other = Object.keys(data).find((type) => type !== "text/plain");
  if (other !== undefined) return { kind: "elsewhere", what: other.slice(0, 200), source: plain };
  return { kind: "text", source: plain };
}

function frame(data: Data): Presentation | null {
  if ("application/javascript" in data) {
    return { kind: "frame", language: "javascript", source: text(data["application/javascript"]) };
  }
  if ("text/html" in data) return { kind: "frame", language: "html", source: text(data["text/html"]) };
  if ("image/svg+xml" in data) return { kind: "frame", language: "svg", source: text(data["image/svg+xml"]) };
  return null;
}

function image(data: Data, metadata: Data): Presentation | null {
  for (const type of IMAGES) {
    const base64 = text(data[type]);
    if (base64 === "" || !BASE64.test(base64.slice(0, 4096))) continue;
    const about = metadata[type] as { width?: unknown; height?: unknown } | null | undefined;
    return { kind: "image", type, base64, width: side(about?.width), height: side(about?.height) };
  }
  return null;
}

function side(value: unknown): number | null {
  return typeof value === "number" && value > 0 && value <= 10_000 ? value : null;
}

/** How many characters something has. */
export function sizeOf(shown: Presentation): number {
  return shown.kind === "image" ? shown.base64.length : shown.source.length;
}

/** Why something is not shown unasked; null if it is. */
export function demand(shown: Presentation): string | null {
  const size = sizeOf(shown);
  if (size > MOST[shown.kind] && shown.kind !== "text" && shown.kind !== "json") return "too large";
  if (size > UNASKED[shown.kind]) return "large";
  if (shown.kind === "image") {
    const pixels = pixelsOf(shown.type, shown.base64);
    if (pixels !== null && pixels > MOST_PIXELS) return "large";
  }
  return null;
}

/** What somebody reads who does not see the output. */
export function described(shown: Presentation): string {
  if (shown.kind === "image") return `Image (${shown.type.slice(6).toUpperCase()})`;
  if (shown.kind === "elsewhere") return shown.what;
  if (shown.kind === "frame") {
    return { html: "HTML output", svg: "SVG image", javascript: "JavaScript output" }[shown.language];
  }
  return { markdown: "Markdown output", latex: "Formula", text: "Text", json: "JSON" }[shown.kind];
}

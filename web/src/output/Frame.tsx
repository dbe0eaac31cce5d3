import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { base } from "../api/client";
import type { FrameLanguage } from "./presentation";

const LOWEST = 24;
const HIGHEST = 480;

/** A frame that says more than this in a second is taken away: it may be meant to keep the page busy. */
const MOST_SAID = 50;

const NAMES = { html: "HTML", svg: "SVG", javascript: "JavaScript" } as const;

/**
 * HTML, SVG or JavaScript of a kernel, in a frame that has no part in the page: another origin, no
 * network, no dialogs, no windows, no forms, no way to move the page elsewhere.
 */
export function Frame({ language, source }: { language: FrameLanguage; source: string }) {
  const [ended, setEnded] = useState<string | null>(null);
  const element = useRef<HTMLIFrameElement>(null);
  // Before the frame has loaded anything: what it says first must be heard.
  useLayoutEffect(() => {
    const frame = element.current;
    if (frame === null) return;
    return listen(frame, { language, source, dark: isDark() }, setEnded);
  }, [language, source, ended]);
  const name = `${NAMES[language]} of the kernel`;
  return (
    <figure class="framed">
      <figcaption class="hint">{name}</figcaption>
      {ended === null ? (
        <iframe
          ref={element}
          title={name}
          sandbox="allow-scripts"
          referrerpolicy="no-referrer"
          src={`${base}/page/frame`}
        />
      ) : (
        <p class="notice">
          {ended}{" "}
          <button type="button" onClick={() => setEnded(null)}>
            Show it again
          </button>
        </p>
      )}
    </figure>
  );
}

function isDark(): boolean {
  return getComputedStyle(document.documentElement).colorScheme === "dark";
}

interface Shown {
  readonly language: FrameLanguage;
  readonly source: string;
  readonly dark: boolean;
}

/** Hand the source over when the frame asks for it, and take its height. Returns what ends that. */
function listen(frame: HTMLIFrameElement, shown: Shown, end: (why: string) => void): () => void {
  let said = 0;
  let loads = 0;
  const calm = setInterval(() => {
    said = 0;
  }, 1000);
  const onMessage = (event: MessageEvent<unknown>): void => {
    if (event.source !== frame.contentWindow) return;
    said += 1;
    if (said > MOST_SAID) {
      frame.remove(); // at once, and not only when the page is drawn again
      end("This output was taken away: it kept the page busy.");
      return;
    }
    const told = event.data as { kernelkeep?: unknown; height?: unknown } | null;
    if (told?.kernelkeep === "ready") frame.contentWindow?.postMessage(shown, "*");
    else if (told?.kernelkeep === "height") frame.style.height = `${clamped(told.height)}px`;
  };
  const onLoad = (): void => {
    loads += 1;
    if (loads > 1) end("This output was taken away: it tried to lead elsewhere.");
  };
  window.addEventListener("message", onMessage);
  frame.addEventListener("load", onLoad);
  return () => {
    clearInterval(calm);
    window.removeEventListener("message", onMessage);
    frame.removeEventListener("load", onLoad);
  };
}

function clamped(height: unknown): number {
  return typeof height === "number" && height >= LOWEST ? Math.min(height, HIGHEST) : LOWEST;
}

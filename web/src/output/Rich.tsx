import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { bytes } from "../components/format";
import { Ansi } from "./Ansi";
import { Frame } from "./Frame";
import { demand, described, MOST, type Presentation, sizeOf } from "./presentation";
import { foldText } from "./terminal";

/** An output in its richest form; what is large is shown when it is asked for. */
export function Rich({ shown }: { shown: Presentation }) {
  const [asked, setAsked] = useState(false);
  const why = demand(shown);
  if (why === "too large") {
    return (
      <p class="notice">
        {described(shown)} of {bytes(sizeOf(shown))}: too large to be shown here.
      </p>
    );
  }
  if (why === null || asked) return <Shown shown={shown} />;
  return (
    <p class="notice">
      {described(shown)} of {bytes(sizeOf(shown))}.{" "}
      <button type="button" onClick={() => setAsked(true)}>
        Show it
      </button>
    </p>
  );
}

function Shown({ shown }: { shown: Presentation }) {
  switch (shown.kind) {
    case "image":
      return <Picture shown={shown} />;
    case "frame":
      return <Frame language={shown.language} source={shown.source} />;
    case "markdown":
      return <Marked source={shown.source} make={markdownOf} />;
    case "latex":
      return <Marked source={shown.source} make={latexOf} />;
    case "elsewhere":
      return (
        <div class="elsewhere">
          <p class="notice">{shown.what} is here, which JupyterLab can show, and this page cannot.</p>
          {shown.source !== "" && <Plain source={shown.source} />}
        </div>
      );
    default:
      return <Plain source={shown.source.slice(0, MOST[shown.kind])} />;
  }
}

export function Plain({ source }: { source: string }) {
  return (
    <pre class="said">
      <Ansi text={foldText(source)} />
    </pre>
  );
}

function Picture({ shown }: { shown: Presentation & { kind: "image" } }) {
  const [broken, setBroken] = useState(false);
  if (broken) return <p class="notice">{described(shown)} that cannot be shown: its data are damaged.</p>;
  return (
    <img
      class="picture"
      src={`data:${shown.type};base64,${shown.base64}`}
      alt={`${described(shown)} that the kernel has put out`}
      width={shown.width ?? undefined}
      height={shown.height ?? undefined}
      decoding="async"
      onError={() => setBroken(true)}
    />
  );
}

type Make = (source: string) => Promise<DocumentFragment | null>;

// The parsers are loaded when there is something for them.
const markdownOf: Make = async (source) => (await import("./markup")).markdown(source);
const latexOf: Make = async (source) => (await import("./markup")).latex(source);

/** What a parser makes of a source; the source itself until then, and where it makes nothing. */
function Marked({ source, make }: { source: string; make: Make }): ComponentChildren {
  const [made, setMade] = useState<DocumentFragment | null>(null);
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    let wanted = true;
    setMade(null);
    make(source).then(
      (fragment) => wanted && setMade(fragment),
      () => undefined, // the source is shown as it is
    );
    return () => {
      wanted = false;
    };
  }, [source, make]);
  useEffect(() => {
    if (made !== null) place.current?.replaceChildren(made.cloneNode(true));
  }, [made]);
  return made === null ? <Plain source={source} /> : <div class="marked" ref={place} />;
}

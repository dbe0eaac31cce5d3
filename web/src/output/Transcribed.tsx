import { useCallback, useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { useVirtual } from "../components/virtual";
import type { Row } from "./rows";
import { RowView } from "./RowView";
import type { Transcript } from "./transcript";
import "./output.css";

const LINE = 19;
const AROUND = 3;
/** Whoever is so near to the end of the list wants to see what comes. */
const NEAR = 30;
/** Keys that scroll up. */
const UPWARDS = ["Home", "PageUp", "ArrowUp"];

interface Props {
  readonly transcript: Transcript;
  /** The transcript's: it is the same object when it has changed. */
  readonly revision: number;
  readonly label: string;
  /** Whether the list stays at its end as rows come. */
  readonly following: boolean;
  readonly onFollowing: (following: boolean) => void;
  /** Called with the rows that are shown, of which some may have been dropped from memory. */
  readonly onShown: (first: number, last: number) => void;
  readonly onFetch?: (row: Row) => void;
  readonly onPassed?: (row: Row) => void;
}

/** All rows of a transcript, of which those are in the page that can be seen. */
export function Transcribed(props: Props) {
  const { transcript, revision, following, onFollowing, onShown, onFetch, onPassed } = props;
  const { rows } = transcript;
  const scroller = useRef<HTMLDivElement>(null);
  const list = useVirtual(scroller, {
    count: rows.length,
    size: (index) => estimated(rows[index]),
    key: (index) => rows[index]?.key ?? index,
    overscan: AROUND,
  });
  const items = list.getVirtualItems();
  const first = items[0]?.index ?? 0;
  const last = items.at(-1)?.index ?? -1;
  const measure = useCallback((element: HTMLElement | null) => list.measureElement(element), [list]);

  useEffect(() => onShown(first, last), [first, last, revision, onShown]);
  // Another list begins at its top. Where the one before was is kept by the browser, if rows of this one are there
  // before it has drawn it empty.
  useLayoutEffect(() => {
    if (scroller.current !== null) scroller.current.scrollTop = 0;
  }, [transcript]);
  const held = useRef(false);
  const top = useRef(0);
  useLayoutEffect(() => {
    const element = scroller.current;
    if (!following || held.current || element === null) return;
    element.scrollTop = element.scrollHeight;
    // The event comes later. By then a key may have ended this, and it must not look as if a hand had scrolled.
    top.current = element.scrollTop;
  });
  // The browser scrolls some time after the hand, and what comes meanwhile must not bring the end back.
  // This is said whatever the last drawing has shown: an event before this one may have begun to follow.
  const leave = (): void => {
    const element = scroller.current;
    if (element !== null && element.scrollHeight > element.clientHeight) onFollowing(false);
  };
  // The browser takes its time on the way to an end of the list. Rows that are measured meanwhile stop it, rows
  // that come move the end, and what it does on its way down looks like scrolling up.
  const press = (event: KeyboardEvent): void => {
    const element = scroller.current;
    if (event.target !== event.currentTarget || element === null) return;
    if (UPWARDS.includes(event.key)) leave();
    if (event.key === "Home") element.scrollTop = 0;
    else if (event.key === "End") onFollowing(true);
    else return;
    event.preventDefault();
  };
  const hold = (event: PointerEvent): void => {
    held.current = event.target === scroller.current; // at its scroll bar
    addEventListener("pointerup", () => (held.current = false), { once: true });
  };
  const finger = useRef(0);
  const onScroll = (): void => {
    const element = scroller.current;
    if (element === null) return;
    const atEnd = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
    const moved = element.scrollTop - top.current;
    top.current = element.scrollTop;
    if (atEnd && !following && moved > 2) onFollowing(true);
    // Rows that turn out to be lower than was thought move the list up, too: a hand at the bar is one that wants to.
    else if (!atEnd && following && moved < -2 && held.current) onFollowing(false);
  };
  return (
    <div
      ref={scroller}
      class="transcript"
      role="region"
      aria-label={props.label}
      tabIndex={0}
      onScroll={onScroll}
      onWheel={(event) => event.deltaY < 0 && leave()}
      onTouchStart={(event) => (finger.current = event.touches[0]?.clientY ?? 0)}
      onTouchMove={(event) => (event.touches[0]?.clientY ?? 0) > finger.current + NEAR && leave()}
      onPointerDown={hold}
      onKeyDown={press}
    >
      <div class="transcript-whole" style={{ height: `${list.getTotalSize()}px` }}>
        <div class="transcript-part" style={{ transform: `translateY(${items[0]?.start ?? 0}px)` }}>
          {items.map(({ index, key }) => {
            const row = rows[index];
            if (row === undefined) return null;
            return (
              <div key={key} data-index={index} ref={measure}>
                <RowView row={row} revision={row.revision} onFetch={onFetch} onPassed={onPassed} />
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}

/** How high a row will be, until it has been in the page. */
function estimated(row: Row | undefined): number {
  if (row === undefined) return LINE;
  if (row.kind === "stream") return LINE * Math.max(1, row.lines);
  if (row.kind === "code") return LINE * 2;
  return row.kind === "display" || row.kind === "error" ? LINE * 5 : LINE * 2;
}

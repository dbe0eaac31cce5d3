// Long lists of which only the rows near the visible part are in the page.

import {
  elementScroll, observeElementOffset, observeElementRect, observeWindowOffset, observeWindowRect,
  Virtualizer, windowScroll,
} from "@tanstack/virtual-core";
import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useReducer, useState } from "preact/hooks";

interface Options {
  readonly count: number;
  readonly size: (index: number) => number;
  readonly key?: (index: number) => string | number;
  readonly overscan?: number;
}

/** A list that scrolls with the whole page and begins at `list`. */
export function useWindowVirtual(
  list: RefObject<HTMLElement | null>,
  { count, size, key, overscan = 12 }: Options,
): Virtualizer<Window, HTMLElement> {
  const [, again] = useReducer((turn: number, _: void) => turn + 1, 0);
  const [virtual] = useState(
    () => new Virtualizer<Window, HTMLElement>(windowOptions({ count, size, overscan }, 0, again)),
  );
  const margin = list.current?.offsetTop ?? 0;
  virtual.setOptions({
    ...windowOptions({ count, size, overscan }, margin, again),
    ...(key === undefined ? {} : { getItemKey: key }),
  });
  useEffect(() => virtual._didMount(), []);
  useLayoutEffect(() => virtual._willUpdate());
  return virtual;
}

function windowOptions(
  { count, size, overscan }: Required<Omit<Options, "key">>, scrollMargin: number, again: (_: void) => void,
) {
  return {
    count, estimateSize: size, overscan, scrollMargin,
    getScrollElement: () => window,
    observeElementRect: observeWindowRect,
    observeElementOffset: observeWindowOffset,
    scrollToFn: windowScroll,
    initialRect: { width: innerWidth, height: innerHeight },
    onChange: () => again(),
  };
}

/** A list in an element that scrolls by itself. */
export function useVirtual(
  scroller: RefObject<HTMLElement | null>,
  { count, size, key, overscan = 12 }: Options,
): Virtualizer<HTMLElement, HTMLElement> {
  const [, again] = useReducer((turn: number, _: void) => turn + 1, 0);
  const options = {
    count, estimateSize: size, overscan,
    getScrollElement: () => scroller.current,
    observeElementRect,
    observeElementOffset,
    scrollToFn: elementScroll,
    onChange: () => again(),
    ...(key === undefined ? {} : { getItemKey: key }),
  };
  const [virtual] = useState(() => new Virtualizer<HTMLElement, HTMLElement>(options));
  virtual.setOptions(options);
  useEffect(() => virtual._didMount(), []);
  useLayoutEffect(() => virtual._willUpdate());
  return virtual;
}

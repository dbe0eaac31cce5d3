// Where the page is: the fragment of its address, so that the server needs no path for a view and
// the page works below any prefix. `#/kernels/ID/output?from=end` is a path of segments and a query.

import { signal } from "@preact/signals";

export interface Route {
  readonly path: readonly string[];
  readonly query: URLSearchParams;
}

export function parseRoute(fragment: string): Route {
  const [path = "", query = ""] = fragment.replace(/^#\/?/, "").split("?", 2);
  const segments = path.split("/").filter((segment) => segment !== "");
  return { path: segments.map(decoded), query: new URLSearchParams(query) };
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

/** The fragment of a view: `href("kernels", id, "output")`. */
export function href(...segments: string[]): string {
  return `#/${segments.map(encodeURIComponent).join("/")}`;
}

export const route = signal<Route>(parseRoute(location.hash));

window.addEventListener("hashchange", () => {
  route.value = parseRoute(location.hash);
});

export function navigate(fragment: string): void {
  location.hash = fragment;
}

/** Change the fragment without a new entry in the browser's history, as for a filter that is typed. */
export function replaceRoute(fragment: string): void {
  history.replaceState(null, "", fragment);
  route.value = parseRoute(fragment);
}

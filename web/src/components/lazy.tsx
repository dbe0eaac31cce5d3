// Views that are loaded when they are first shown.

import { signal } from "@preact/signals";
import type { ComponentType, VNode } from "preact";

/** A component whose module is loaded at its first use. */
export function lazy<P extends object>(
  load: () => Promise<{ default: ComponentType<P> }>,
): (props: P) => VNode {
  const loaded = signal<ComponentType<P> | null>(null);
  const failed = signal(false);
  let loading = false;
  const start = () => {
    loading = true;
    failed.value = false;
    patiently(load).then(
      (module) => {
        loaded.value = module.default;
      },
      () => {
        // The server is away, or has another version of the page meanwhile.
        loading = false;
        failed.value = true;
      },
    );
  };
  return function Lazy(props: P) {
    const View = loaded.value;
    if (View !== null) return <View {...props} />;
    if (failed.value) {
      return (
        <p role="alert" class="notice">
          This part of the page could not be loaded.{" "}
          <button type="button" onClick={start}>
            Try again
          </button>{" "}
          <button type="button" onClick={() => location.reload()}>
            Load the page anew
          </button>
        </p>
      );
    }
    if (!loading) start();
    return (
      <p class="loading" role="status">
        Loading …
      </p>
    );
  };
}

const PAUSES_MS = [300, 1000, 3000];

/** Load something, and try again where the network has just changed. */
async function patiently<T>(load: () => Promise<T>): Promise<T> {
  for (const pause of PAUSES_MS) {
    try {
      return await load();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
  return load();
}

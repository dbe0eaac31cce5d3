// Short notices at the foot of the page, with an undo where there is one.

import { signal } from "@preact/signals";

export interface Toast {
  readonly id: number;
  readonly text: string;
  readonly kind: "info" | "error";
  readonly undo?: (() => void) | undefined;
}

const MOST = 4;
const toasts = signal<readonly Toast[]>([]);
let last = 0;

/** Show a notice for some seconds; the function that is returned takes it away. */
export function toast(
  text: string,
  options: { kind?: "info" | "error"; undo?: () => void; seconds?: number } = {},
): () => void {
  last += 1;
  const id = last;
  const remove = () => {
    toasts.value = toasts.value.filter((shown) => shown.id !== id);
  };
  const made: Toast = { id, text, kind: options.kind ?? "info", undo: options.undo };
  toasts.value = [...toasts.value, made].slice(-MOST);
  setTimeout(remove, 1000 * (options.seconds ?? (made.kind === "error" ? 12 : 6)));
  return remove;
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map(({ id, text, kind, undo }) => (
        <div class={`toast toast-${kind}`} key={id}>
          <span>{text}</span>
          {undo !== undefined && (
            <button
              type="button"
              onClick={() => {
                undo();
                toasts.value = toasts.value.filter((shown) => shown.id !== id);
              }}
            >
              Undo
            </button>
          )}
        </div>
      ))}
    </div>
  );
}

// Light or dark: as the system says, or as the reader has chosen. theme.css reads the attribute
// `data-theme` of the root; `theme.value` tells views that draw for themselves which one it is.

import { computed, signal } from "@preact/signals";

import { readStored, store } from "./storage";

export type Theme = "light" | "dark";
export type Choice = Theme | "system";

const system = matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(system.matches);
system.addEventListener("change", (event) => {
  systemIsDark.value = event.matches;
});

const stored = readStored(localStorageOrNone(), "kernelkeep.theme");
export const choice = signal<Choice>(stored === "light" || stored === "dark" ? stored : "system");

export const theme = computed<Theme>(() => {
  if (choice.value !== "system") return choice.value;
  return systemIsDark.value ? "dark" : "light";
});

export function choose(next: Choice): void {
  choice.value = next;
  store(localStorageOrNone(), "kernelkeep.theme", next);
}

export function applyTheme(): void {
  theme.subscribe((value) => {
    document.documentElement.dataset["theme"] = value;
  });
}

function localStorageOrNone(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

const LOOKS: Readonly<Record<string, string>> = {
  idle: "good", busy: "busy", starting: "busy", restarting: "busy", terminating: "busy",
  dead: "bad", unknown: "bad",
};

/** The state of a kernel, in a colour that says whether it needs somebody. */
export function Pill({ state }: { state: string }) {
  return <span class={`state state-${LOOKS[state] ?? "other"}`}>{state}</span>;
}

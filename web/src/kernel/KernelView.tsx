import { href } from "../app/router";
import { lazy } from "../components/lazy";

const TABS = ["output", "executions", "usage", "events", "console"] as const;

const ConsoleView = lazy(() => import("../console/ConsoleView"));

/** One kernel: `tab` is one of `TABS`, `rest` what follows it in the fragment. */
export default function KernelView(props: { id: string; tab: string; rest: readonly string[] }) {
  const { id, tab } = props;
  return (
    <>
      <h1>Kernel {id}</h1>
      <nav aria-label="Of this kernel">
        {TABS.map((name) => (
          <a key={name} href={href("kernels", id, name)} aria-current={name === tab ? "page" : undefined}>
            {name}
          </a>
        ))}
      </nav>
      {tab === "console" && <ConsoleView id={id} />}
    </>
  );
}

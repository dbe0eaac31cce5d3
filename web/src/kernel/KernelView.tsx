import { api, type Kernel, messageOf } from "../api/client";
import { allows } from "../api/me";
import { href } from "../app/router";
import { lazy } from "../components/lazy";
import { Pill } from "../components/Pill";
import { Ago } from "../components/Time";
import { act, pending, undo } from "../kernels/actions";
import { nameOf, reasonOf, type Row, specOf } from "../kernels/row";
import { names, rows } from "../kernels/store";
import { usePolled } from "./polled";
import "./kernel.css";

const TABS = [
  ["output", "Output"],
  ["executions", "Executions"],
  ["console", "Console"],
  ["usage", "Usage"],
  ["events", "Events"],
  ["connect", "Connect"],
] as const;

const OutputView = lazy(() => import("./OutputView"));
const ExecutionsView = lazy(() => import("../executions/ExecutionsView"));
const ConsoleView = lazy(() => import("../console/ConsoleView"));
const UsageView = lazy(() => import("./UsageView"));
const EventsView = lazy(() => import("./EventsView"));
const ConnectView = lazy(() => import("./ConnectView"));

const PERIOD = 3000;

/** One kernel: `tab` is one of `TABS`, `rest` what follows it in the fragment. */
export default function KernelView(props: { id: string; tab: string; rest: readonly string[] }) {
  const { id, tab, rest } = props;
  const [kernel, problem] = usePolled(
    async () => {
      const { data, error } = await api.GET("/api/kernels/{kernel_id}", { params: { path: { kernel_id: id } } });
      if (data === undefined) throw new Error(messageOf(error));
      return data;
    },
    PERIOD,
    [id],
  );
  const row = rows.value.get(id);
  if (row !== undefined && row.gone !== null && problem !== "") return <Gone row={row} />;
  const { sessions, specs } = names.value;
  const session = sessions.get(id) || undefined;
  const spec = kernel === null ? undefined : (specs.get(kernel.name) ?? kernel.name);
  return (
    <>
      <Crumbs />
      <header class="kernel-head">
        <h1>
          {session ?? spec ?? "Kernel"} <span class="mono muted kernel-id">{id}</span>
        </h1>
        <State kernel={kernel} problem={problem} spec={session === undefined ? undefined : spec} />
        {kernel !== null && <Actions id={id} name={session ?? kernel.name} />}
      </header>
      <nav aria-label="Of this kernel" class="tabs">
        {TABS.map(([name, label]) => (
          <a key={name} href={href("kernels", id, name)} aria-current={name === tab ? "page" : undefined}>
            {label}
          </a>
        ))}
      </nav>
      <Tab id={id} tab={tab} rest={rest} />
    </>
  );
}

/** Of a kernel that has ended nothing is left but why. */
function Gone({ row }: { row: Row }) {
  const name = nameOf(row, names.value);
  const spec = specOf(row, names.value);
  return (
    <>
      <Crumbs />
      <header class="kernel-head">
        <h1>
          {name} <span class="mono muted kernel-id">{row.id}</span>
        </h1>
        <div class="kernel-state">
          <Pill state="gone" />
          {name !== spec && <span>{spec}</span>}
          <span>
            <Ago since={new Date(row.gone ?? 0)} /> ago
          </span>
        </div>
        <p class="notice" role="status">
          {reasonOf(row)}. What it has put out went with it.
        </p>
      </header>
    </>
  );
}

function Crumbs() {
  return (
    <nav aria-label="Where this kernel is" class="crumbs">
      <a href={href("kernels")}>Kernels</a>
    </nav>
  );
}

/** What can be done with the kernel; a restart and a stop can be undone for some seconds. */
function Actions({ id, name }: { id: string; name: string }) {
  const waits = pending.value.get(id)?.action;
  if (waits !== undefined) {
    return (
      <div class="actions bar">
        <button type="button" onClick={() => undo([id])}>
          Do not {waits}
        </button>
      </div>
    );
  }
  if (!allows("kernels", "write")) return null;
  return (
    <div class="actions bar">
      <button type="button" onClick={() => act("interrupt", [id], name)}>
        Interrupt
      </button>
      <button type="button" onClick={() => act("restart", [id], name)}>
        Restart
      </button>
      <button type="button" class="danger" onClick={() => act("stop", [id], name)}>
        Stop
      </button>
    </div>
  );
}

function Tab({ id, tab, rest }: { id: string; tab: string; rest: readonly string[] }) {
  switch (tab) {
    case "output":
      return <OutputView id={id} />;
    case "executions":
      return <ExecutionsView id={id} chosen={rest[0] ?? null} />;
    case "console":
      return <ConsoleView id={id} />;
    case "usage":
      return <UsageView id={id} />;
    case "events":
      return <EventsView id={id} />;
    case "connect":
      return <ConnectView id={id} />;
    default:
      return <p class="notice">There is no such view of a kernel.</p>;
  }
}

function State(props: { kernel: Kernel | null; problem: string; spec: string | undefined }) {
  const { kernel, problem, spec } = props;
  if (problem !== "") {
    return (
      <p class="notice error" role="status">
        {problem}
      </p>
    );
  }
  if (kernel === null) return <p class="loading">Loading …</p>;
  return (
    <div class="kernel-state">
      <Pill state={kernel.execution_state} />
      {spec !== undefined && <span>{spec}</span>}
      {kernel.owner && <span>owner {kernel.owner}</span>}
      <span>
        process {kernel.generation}
        {kernel.restarts && `, restarted by itself ${kernel.restarts.count} times`}
      </span>
      <span>
        last used <Ago since={kernel.last_activity} /> ago
      </span>
      {kernel.reason && <p class="notice error reason">{kernel.reason}</p>}
    </div>
  );
}

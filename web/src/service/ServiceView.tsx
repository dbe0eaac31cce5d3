import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";

import { token } from "../app/token";
import { href } from "../app/router";
import { bytes, duration, number } from "../components/format";
import { now } from "../components/now";
import { Sparkline } from "../components/Sparkline";
import { Ago } from "../components/Time";
import { rows } from "../kernels/store";
import { type Figures, total, totals } from "./prometheus";
import { figures, KEPT_MS, keepReading, type Owner, owners, readings, status, version } from "./readings";
import "./service.css";

export default function ServiceView() {
  const shown = token.value;
  useEffect(() => {
    const leaving = new AbortController();
    void keepReading(leaving.signal);
    return () => leaving.abort();
  }, [shown]);
  const known = figures.value;
  return (
    <>
      <h1>Service</h1>
      <Tiles />
      {known === "refused" && (
        <p class="notice">The figures of the whole server are for those with the scope metrics:read.</p>
      )}
      {known === "absent" && <p class="notice">This server has no /metrics (serve_metrics=false).</p>}
      <div class="service-parts">
        <ByState />
        {known !== null && typeof known !== "string" && <Lives figures={known} />}
        <Hosts />
        <Replicas />
      </div>
      <Owners />
      <p class="muted">
        The API of this server is described at <code>docs?token=…</code> below this address.
      </p>
    </>
  );
}

function Tiles() {
  const told = status.value;
  const read = readings.value;
  const latest = read.at(-1);
  const lag = latest?.lag ?? null;
  return (
    <dl class="tiles">
      <Tile name="Kernels" value={told === null ? "–" : number(told.kernels)} />
      <Tile name="Connections" value={told === null ? "–" : number(told.connections)}>
        {drawn(read.map(({ at, connections }) => [at, connections] as const), "Connections")}
      </Tile>
      {latest !== undefined && (
        <>
          <Tile name="Logs on disk" value={bytes(latest.logBytes)}>
            {drawn(read.map(({ at, logBytes }) => [at, logBytes] as const), "Bytes of logs")}
          </Tile>
          <Tile name="Loop lag (99 %)" value={lag === null ? "–" : lagText(lag)}>
            {drawn(read.map((one) => [one.at, finite(one.lag)] as const), "Lag of the loop")}
          </Tile>
        </>
      )}
      {figures.value instanceof Map && (
        <Tile name="Forked kernels" value={number(total(figures.value, "kernelkeep_kernel_forks_total"))} />
      )}
      <Tile name="Up" value={told === null ? "–" : <Ago since={told.started} />} />
      <Tile name="Last used" value={told === null ? "–" : <Ago since={told.last_activity} />} />
      <Tile name="Version" value={version.value || "–"} />
    </dl>
  );
}

function finite(value: number | null): number | null {
  return value === null || Number.isFinite(value) ? value : 10;
}

function lagText(bound: number): string {
  return Number.isFinite(bound) ? `≤ ${duration(bound)}` : "> 5 s";
}

function drawn(points: readonly (readonly [number, number | null])[], what: string) {
  if (points.length < 2) return null;
  return (
    <Sparkline points={points} until={now.value} milliseconds={KEPT_MS}
      label={`${what} since the view was opened, ten minutes at most`} />
  );
}

function Tile(props: { name: string; value: ComponentChildren; children?: ComponentChildren }) {
  return (
    <div class="tile">
      <dt>{props.name}</dt>
      <dd>{props.value}</dd>
      {props.children && <dd class="tile-line">{props.children}</dd>}
    </div>
  );
}

function counted(words: Iterable<string>): [string, number][] {
  const counts = new Map<string, number>();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts].sort(([, one], [, other]) => other - one);
}

function ByState() {
  const present = [...rows.value.values()].filter(({ gone }) => gone === null);
  const states = counted(present.map(({ state }) => state));
  return (
    <Part title="Kernels by state" empty="There are none.">
      {states.map(([state, count]) => (
        <Bar key={state} count={count} all={present.length}>
          <a href={`${href("kernels")}?q=${encodeURIComponent(state)}`}>{state}</a>
        </Bar>
      ))}
    </Part>
  );
}

function Lives({ figures: known }: { figures: Figures }) {
  const spelled = (name: string) => name.replaceAll("_", " ");
  const parts = [
    ["Starts by reason", "kernelkeep_kernel_starts_total", "reason"],
    ["Deaths by reason", "kernelkeep_kernel_deaths_total", "reason"],
    ["Culls by reason", "kernelkeep_kernel_culls_total", "reason"],
    ["Warm kernels, ready now", "kernelkeep_warm_kernels", "type"],
    ["Refused by limits", "kernelkeep_limit_refusals_total", "limit"],
  ] as const;
  return (
    <>
      {parts.map(([title, name, label]) => (
        <Part key={name} title={title} empty="None.">
          {totals(known, name, label).map(([word, count]) => (
            <Bar key={word} count={count} all={total(known, name)}>
              {spelled(word)}
            </Bar>
          ))}
        </Part>
      ))}
    </>
  );
}

function Hosts() {
  const present = [...rows.value.values()].filter(({ gone }) => gone === null);
  if (!present.some(({ told }) => told.host !== null)) return null;
  return (
    <Part title="Kernels by host" empty="">
      {counted(present.map(({ told }) => told.host ?? "this one")).map(([host, count]) => (
        <Bar key={host} count={count} all={present.length}>
          {host}
        </Bar>
      ))}
    </Part>
  );
}

const STATES = {
  joined: "joined",
  declared_dead: "declared dead by the others",
  unknown: "not known: the registry does not answer",
};

function Replicas() {
  const told = status.value?.replicas ?? [];
  if (told.length === 0) return null;
  const all = told.reduce((sum, { kernels }) => sum + kernels, 0);
  return (
    <Part title="Replicas" empty="">
      {told.map(({ id, asked, state, kernels }) => (
        <Bar key={id} count={kernels} all={all}>
          <span class="mono">{id.slice(0, 8)}</span>
          {asked && <strong> answers here</strong>} <span class={`replica-${state}`}>{STATES[state]}</span>
        </Bar>
      ))}
    </Part>
  );
}

function Part(props: { title: string; empty: string; children: ComponentChildren[] }) {
  return (
    <section class="part">
      <h2>{props.title}</h2>
      {props.children.length === 0 ? <p class="muted">{props.empty}</p> : <ul class="bars">{props.children}</ul>}
    </section>
  );
}

function Bar(props: { count: number; all: number; children: ComponentChildren }) {
  return (
    <li>
      <span>{props.children}</span>
      <strong>{number(props.count)}</strong>
      <meter value={props.count} min={0} max={props.all} aria-hidden="true" />
    </li>
  );
}

const USED = [
  ["kernels", "kernels", "Kernels", number],
  ["queued_executions", "queued_executions", "Waiting", number],
  ["log_bytes", "log_bytes", "Logs", bytes],
  ["websockets", "websockets", "WebSockets", number],
  ["starts_per_minute", "starts_per_minute", "Starts a minute", number],
] as const;

function Owners() {
  const listed = owners.value;
  const limited = listed.some(({ limits }) => Object.values(limits).some((one) => one !== undefined));
  if (listed.length < 2 && !limited) return null;
  return (
    <section>
      <h2>Owners</h2>
      <div class="scrolls" tabIndex={0} role="region" aria-label="Owners, with what they use of their limits">
        <table class="owners">
          <thead>
            <tr>
              <th scope="col">Name</th>
              {USED.map(([, , label]) => (
                <th scope="col" key={label}>
                  {label}
                </th>
              ))}
              <th scope="col">Memory</th>
              <th scope="col">Processors</th>
            </tr>
          </thead>
          <tbody>
            {listed.map((owner) => (
              <OwnerRow key={owner.name} owner={owner} />
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function OwnerRow({ owner: { name, usage, limits } }: { owner: Owner }) {
  const mine = [...rows.value.values()].filter(
    ({ gone, told }) => gone === null && (told.kernel.owner ?? "") === name,
  );
  const memory = mine.reduce((sum, { told }) => sum + (told.memory ?? 0), 0);
  const cpu = mine.reduce((sum, { told }) => sum + (told.cpu ?? 0), 0);
  return (
    <tr>
      <th scope="row">
        <a href={`${href("kernels")}?q=${encodeURIComponent(name)}`}>{name || "the server’s own"}</a>
      </th>
      {USED.map(([used, limit, label, written]) => (
        <td key={label}>
          {used in usage || limit in limits ? written(usage[used] ?? 0) : "–"}
          {typeof limits[limit] === "number" && <span class="muted"> of {written(limits[limit])}</span>}
        </td>
      ))}
      <td>
        {bytes(memory)}
        {typeof limits.memory === "number" && <span class="muted"> of {bytes(limits.memory)}</span>}
      </td>
      <td>
        {cpu.toFixed(1)}
        {typeof limits.cpu === "number" && <span class="muted"> of {limits.cpu}</span>}
      </td>
    </tr>
  );
}

import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";

import { allows } from "../api/me";
import { href } from "../app/router";
import { bytes, duration, number } from "../components/format";
import { now } from "../components/now";
import { Pill } from "../components/Pill";
import { Sparkline } from "../components/Sparkline";
import { Ago } from "../components/Time";
import { type Action, pending, undo } from "./actions";
import { kindOf, nameOf, reasonOf, type Row, specOf } from "./row";
import { doWith, selected } from "./selection";
import { KEPT_MS, pointsOf, seriesVersion, wantPast } from "./series";
import { names } from "./store";

interface Props {
  readonly row: Row;
  readonly index: number;
  readonly top: number;
  readonly owners: boolean;
  readonly hosts: boolean;
}

export function TableRow({ row, index, top, owners, hosts }: Props) {
  const { id, told, gone } = row;
  const { kernel } = told;
  useEffect(() => {
    // A row that is scrolled past is not asked about.
    const timer = setTimeout(() => gone === null && wantPast(id), 200);
    return () => clearTimeout(timer);
  }, [id, gone]);
  const name = nameOf(row, names.value);
  const spec = specOf(row, names.value);
  return (
    <div
      role="row"
      class={`kernels-row kernel-row is-${kindOf(row)}`}
      aria-rowindex={index + 2}
      data-kernel={id}
      style={{ transform: `translateY(${top}px)` }}
    >
      <span role="cell" class="c-select">
        {gone === null && allows("kernels", "write") && <Choice id={id} name={name} />}
      </span>
      <span role="cell" class="c-name">
        {gone === null ? (
          <a href={href("kernels", id)} title={`${name} · ${id}`}>
            {name}
          </a>
        ) : (
          <strong title={`${name} · ${id}`}>{name}</strong>
        )}
        <small class="muted" title={id}>
          {name === spec ? "" : `${spec} · `}
          <span class="mono">{id.slice(0, 8)}</span>
        </small>
      </span>
      {owners && (
        <span role="cell" class="c-owner" title={kernel.owner ?? ""}>
          <Narrow>of </Narrow>
          {kernel.owner ?? "–"}
        </span>
      )}
      {hosts && (
        <span role="cell" class="c-host" title={told.host ?? ""}>
          {told.host !== null && <Narrow>on </Narrow>}
          {told.host ?? "here"}
        </span>
      )}
      <State row={row} />
      <Running row={row} />
      <span role="cell" class="c-activity">
        <Narrow>used </Narrow>
        <Ago since={kernel.last_activity} />
        <Narrow> ago</Narrow>
      </span>
      {gone === null ? (
        <>
          <span role="cell" class="c-connections">
            {number(kernel.connections)} {kernel.connections === 1 ? "client" : "clients"}
          </span>
          <Usage row={row} />
          <span role="cell" class="c-log">
            <Narrow>log </Narrow>
            {bytes(told.log_bytes)}
          </span>
        </>
      ) : (
        ["connections", "memory", "cpu", "log"].map((one) => <span key={one} role="cell" class={`c-${one}`} />)
      )}
      <Actions row={row} name={name} />
    </div>
  );
}

/** A word that is needed where there are no heads of columns. */
function Narrow({ children }: { children: ComponentChildren }) {
  return <span class="narrow-only">{children}</span>;
}

function Choice({ id, name }: { id: string; name: string }) {
  return (
    <input
      type="checkbox"
      aria-label={`Select ${name}`}
      checked={selected.value.has(id)}
      onChange={() => {
        const next = new Set(selected.value);
        if (!next.delete(id)) next.add(id);
        selected.value = next;
      }}
    />
  );
}

function State({ row }: { row: Row }) {
  const { told, state, gone } = row;
  const since = gone === null ? told.state_since : new Date(gone);
  return (
    <span role="cell" class="c-state">
      <Pill state={gone === null ? state : "gone"} />
      <small class="muted">
        <Ago since={since} />
      </small>
    </span>
  );
}

function Running({ row }: { row: Row }) {
  const { told, gone } = row;
  const reason = reasonOf(row);
  const { running } = told;
  if (gone !== null || running === null) {
    const bad = gone === null && row.state === "dead";
    return (
      <span role="cell" class={`c-running c-reason ${bad ? "error-text" : "muted"}`} title={reason}>
        {reason}
      </span>
    );
  }
  const waiting = told.waiting > 0 ? ` · ${number(told.waiting)} waiting` : "";
  return (
    <span role="cell" class="c-running" title={running.code ?? ""}>
      <a class="mono code" href={href("kernels", row.id, "executions", running.execution_id)}>
        {running.code ?? "(silent code)"}
      </a>
      <small class="muted">
        for <Ago since={running.since} />
        {waiting}
      </small>
    </span>
  );
}

function Usage({ row }: { row: Row }) {
  void seriesVersion.value;
  const { told, id } = row;
  const points = pointsOf(id);
  const until = now.value;
  const most = points.reduce((top, { memory }) => Math.max(top, memory ?? 0), told.memory ?? 0);
  const cpu = told.cpu === null ? "–" : `${Math.round(told.cpu * 100)} %`;
  const drawn = points.length > 1;
  return (
    <>
      <span role="cell" class="c-memory">
        {drawn && (
          <Sparkline
            points={points.map(({ at, memory }) => [at, memory] as const)}
            until={until}
            milliseconds={KEPT_MS}
            label={`Memory of the last ten minutes, at most ${bytes(most)}`}
          />
        )}
        <span>{bytes(told.memory)}</span>
      </span>
      <span role="cell" class="c-cpu">
        {drawn && (
          <Sparkline
            points={points.map((point) => [point.at, point.cpu] as const)}
            until={until}
            milliseconds={KEPT_MS}
            label={`Processors of the last ${duration(KEPT_MS / 1000)}`}
            least={0.2}
          />
        )}
        <span>
          {cpu}
          <Narrow> CPU</Narrow>
        </span>
      </span>
    </>
  );
}

function Actions({ row, name }: { row: Row; name: string }) {
  const { id, gone, state } = row;
  const waits = pending.value.get(id);
  if (gone !== null || !allows("kernels", "write")) return <span role="cell" class="c-actions" />;
  if (waits !== undefined) {
    return (
      <span role="cell" class="c-actions">
        <span class="muted">{waits.action === "stop" ? "stops …" : "restarts …"}</span>
        <button type="button" onClick={() => undo([id])} aria-label={`Undo for ${name}`}>
          Undo
        </button>
      </span>
    );
  }
  return (
    <span role="cell" class="c-actions">
      <Button action="interrupt" label="Interrupt" {...{ id, name }} disabled={state !== "busy"} />
      <Button action="restart" label="Restart" {...{ id, name }} />
      <Button action="stop" label="Stop" {...{ id, name }} />
    </span>
  );
}

const ICONS: Readonly<Record<Action, string>> = {
  interrupt: "M5 3v10M11 3v10",
  restart: "M13 4v3.5H9.5M12.6 7A5 5 0 1 0 13 9.5",
  stop: "M4 4h8v8H4z",
};

/** Its word where there is room for it, else a picture: the row's other facts come first. */
function Button(props: { action: Action; label: string; id: string; name: string; disabled?: boolean }) {
  const { action, label, id, name, disabled = false } = props;
  return (
    <button
      type="button"
      class={action === "stop" ? "danger" : ""}
      disabled={disabled}
      aria-label={`${label} ${name}`}
      title={label}
      onClick={() => doWith(action, [id])}
    >
      <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
        <path d={ICONS[action]} />
      </svg>
      <span class="word">{label}</span>
    </button>
  );
}

import { computed } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import { allows } from "../api/me";
import { href, replaceRoute, route } from "../app/router";
import { number } from "../components/format";
import "./kernels.css";
import { matches, type Names, type Row, type Sort, SORTS, sorted } from "./row";
import { doWith, selected } from "./selection";
import { StartDialog } from "./StartDialog";
import { forgetGone, names, rows, standing } from "./store";
import { Table } from "./Table";

/** What the address says of the table: a filter, and the column that it is sorted by. */
const asked = computed(() => {
  const { query } = route.value;
  const sort = query.get("sort") ?? "";
  const down = sort.startsWith("-");
  const column = SORTS.find((one) => one === sort.replace(/^-/, "")) ?? null;
  return { filter: query.get("q") ?? "", column, down };
});

function ask(change: { filter?: string; column?: Sort | null; down?: boolean }): void {
  const { filter, column, down } = { ...asked.peek(), ...change };
  const query = new URLSearchParams();
  if (filter !== "") query.set("q", filter);
  if (column !== null) query.set("sort", (down ? "-" : "") + column);
  const text = query.toString();
  replaceRoute(href("kernels") + (text === "" ? "" : `?${text}`));
}

function shownRows(known: Names): Row[] {
  const { filter, column, down } = asked.value;
  const words = filter.toLowerCase().split(/\s+/).filter((word) => word !== "");
  const found = [...rows.value.values()].filter((row) => matches(row, words, known));
  return sorted(found, column, down, known);
}

export default function KernelsView() {
  const [starting, setStarting] = useState(false);
  const filter = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof Element && event.target.closest("input, textarea, select, dialog")) return;
      event.preventDefault();
      filter.current?.focus();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  const shown = shownRows(names.value);
  const { column, down } = asked.value;
  return (
    <>
      <div class="kernels-head">
        <h1>Kernels</h1>
        <label class="kernels-filter">
          <span class="visually-hidden">Filter (key: /)</span>
          <input
            ref={filter}
            type="search"
            placeholder="Filter: name, state, code …  ( / )"
            value={asked.value.filter}
            onInput={(event) => ask({ filter: event.currentTarget.value })}
          />
        </label>
        <SortChoice column={column} down={down} />
        <span class="muted" role="status">
          {standing.value === "waiting" ? "Loading …" : countText(shown, [...rows.value.values()])}
        </span>
        {allows("kernels", "write") && (
          <button type="button" class="primary" onClick={() => setStarting(true)}>
            Start a kernel
          </button>
        )}
      </div>
      {standing.value === "refused" ? (
        <p class="notice">This identity may not look at kernels.</p>
      ) : (
        <Content shown={shown} />
      )}
      {starting && <StartDialog onClose={() => setStarting(false)} />}
    </>
  );
}

function countText(shown: readonly Row[], all: readonly Row[]): string {
  const count = (rows: readonly Row[]) => rows.filter((row) => row.gone === null).length;
  const there = count(all);
  const of = count(shown) === there ? "" : ` of ${number(there)}`;
  const gone = all.length === there ? "" : `, ${number(all.length - there)} gone`;
  return `${number(count(shown))}${of} ${there === 1 ? "kernel" : "kernels"}${gone}`;
}

/** Where the table has no heads of columns, on a phone, the order is chosen here. */
function SortChoice({ column, down }: { column: Sort | null; down: boolean }) {
  return (
    <label class="kernels-sort">
      <span class="visually-hidden">Order</span>
      <select
        value={column === null ? "" : (down ? "-" : "") + column}
        onChange={(event) => {
          const chosen = event.currentTarget.value;
          const named = SORTS.find((one) => one === chosen.replace(/^-/, "")) ?? null;
          ask({ column: named, down: chosen.startsWith("-") });
        }}
      >
        <option value="">by start</option>
        <option value="name">by name</option>
        <option value="state">by state</option>
        <option value="-running">longest running</option>
        <option value="activity">last used</option>
        <option value="-memory">most memory</option>
        <option value="-cpu">most CPU</option>
        <option value="-log">largest log</option>
      </select>
    </label>
  );
}

function Content({ shown }: { shown: readonly Row[] }) {
  const known = rows.value;
  const chosen = [...selected.value].filter((id) => known.get(id)?.gone === null);
  const all = [...known.values()];
  const gone = all.some((row) => row.gone !== null);
  const none = standing.value === "live" && all.every((row) => row.gone !== null);
  return (
    <>
      {none && <p class="notice">No kernel runs. Start one here, or with any client of Jupyter.</p>}
      {chosen.length > 0 && allows("kernels", "write") && <Many ids={chosen} />}
      {all.length > 0 && (
        <Table
          shown={shown}
          column={asked.value.column}
          down={asked.value.down}
          onSort={(next) => {
            const { column, down } = asked.peek();
            const figures = ["memory", "cpu", "log", "connections", "running"].includes(next);
            ask({ column: next, down: column === next ? !down : figures });
          }}
        />
      )}
      {gone && (
        <p>
          <button type="button" onClick={forgetGone}>
            Forget those that are gone
          </button>
        </p>
      )}
    </>
  );
}

function Many({ ids }: { ids: readonly string[] }) {
  return (
    <div class="kernels-many" role="group" aria-label="With the selected kernels">
      <strong>{number(ids.length)} selected</strong>
      <button type="button" onClick={() => doWith("interrupt", ids)}>
        Interrupt
      </button>
      <button type="button" onClick={() => doWith("restart", ids)}>
        Restart
      </button>
      <button
        type="button"
        class="danger"
        onClick={() => {
          doWith("stop", ids);
          selected.value = new Set();
        }}
      >
        Stop
      </button>
      <button type="button" class="plain" onClick={() => (selected.value = new Set())}>
        Select none
      </button>
    </div>
  );
}

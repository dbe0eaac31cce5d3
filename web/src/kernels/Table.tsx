// The table: of a thousand rows only those near the visible part are in the page.

import { useEffect, useRef, useState } from "preact/hooks";

import { allows } from "../api/me";
import { number } from "../components/format";
import { useWindowVirtual } from "../components/virtual";
import { kindOf, type Row, type Sort } from "./row";
import { selected } from "./selection";
import { rows } from "./store";
import { TableRow } from "./TableRow";

// As in kernels.css.
const NARROW = matchMedia("(max-width: 1023px)");
const WIDE_ROW = 52;
const NARROW_ROW = { full: 202, quiet: 162, gone: 136 } as const;
const NARROW_LINE = 20; // with the owner and the host

interface Props {
  readonly shown: readonly Row[];
  readonly column: Sort | null;
  readonly down: boolean;
  readonly onSort: (column: Sort) => void;
}

function useNarrow(): boolean {
  const [narrow, setNarrow] = useState(NARROW.matches);
  useEffect(() => {
    const onChange = () => setNarrow(NARROW.matches);
    NARROW.addEventListener("change", onChange);
    return () => NARROW.removeEventListener("change", onChange);
  }, []);
  return narrow;
}

export function Table({ shown, column, down, onSort }: Props) {
  const body = useRef<HTMLDivElement>(null);
  const narrow = useNarrow();
  const all = [...rows.value.values()];
  const owners = all.some(({ told }) => told.kernel.owner);
  const hosts = all.some(({ told }) => told.host !== null);
  const more = owners || hosts ? NARROW_LINE : 0;
  const size = (index: number): number => {
    const row = shown[index];
    if (!narrow || row === undefined) return WIDE_ROW;
    return NARROW_ROW[kindOf(row)] + (row.gone === null ? more : 0);
  };
  const virtual = useWindowVirtual(body, {
    count: shown.length,
    size,
    key: (index) => shown[index]?.id ?? index,
    overscan: narrow ? 4 : 10,
  });
  useEffect(() => virtual.measure(), [narrow]);
  const kinds = `${owners ? " with-owner" : ""}${hosts ? " with-host" : ""}`;
  const top = body.current?.offsetTop ?? 0;
  return (
    <div class={`kernels-table${kinds}`} role="table" aria-label="Kernels" aria-rowcount={shown.length + 1}>
      <div role="rowgroup" class="kernels-heads">
        <Heads {...{ shown, column, down, onSort, owners, hosts }} />
      </div>
      <div
        role="rowgroup"
        class="kernels-body"
        ref={body}
        style={{ height: `${virtual.getTotalSize()}px` }}
      >
        {virtual.getVirtualItems().map(({ index, key, start }) => {
          const row = shown[index];
          return (
            row !== undefined && (
              <TableRow key={key} row={row} index={index} top={start - top} {...{ owners, hosts }} />
            )
          );
        })}
      </div>
    </div>
  );
}

function Heads(props: Props & { owners: boolean; hosts: boolean }) {
  const { shown, owners, hosts } = props;
  const present = shown.filter(({ gone }) => gone === null).map(({ id }) => id);
  const every = present.length > 0 && present.every((id) => selected.value.has(id));
  return (
    <div role="row" class="kernels-row" aria-rowindex={1}>
      <span role="columnheader" class="c-select">
        {allows("kernels", "write") && (
          <input
            type="checkbox"
            aria-label={`Select all ${number(present.length)}`}
            checked={every}
            onChange={() => (selected.value = new Set(every ? [] : present))}
          />
        )}
      </span>
      <Head {...props} name="name" label="Name" />
      {owners && <Head {...props} name="owner" label="Owner" />}
      {hosts && <Head {...props} name="host" label="Host" />}
      <Head {...props} name="state" label="State" />
      <Head {...props} name="running" label="Runs" />
      <Head {...props} name="activity" label="Last used" />
      <Head {...props} name="connections" label="Clients" />
      <Head {...props} name="memory" label="Memory" />
      <Head {...props} name="cpu" label="CPU" />
      <Head {...props} name="log" label="Log" />
      <span role="columnheader" class="c-actions">
        <span class="visually-hidden">Actions</span>
      </span>
    </div>
  );
}

function Head(props: Props & { name: Sort; label: string }) {
  const { name, label, column, down } = props;
  const order = column !== name ? "none" : down ? "descending" : "ascending";
  return (
    <span role="columnheader" class={`c-${name}`} aria-sort={order}>
      <button type="button" class="plain" onClick={() => props.onSort(name)}>
        {label}
        <span aria-hidden="true" class="arrow">
          {order === "none" ? "" : down ? " ↓" : " ↑"}
        </span>
      </button>
    </span>
  );
}

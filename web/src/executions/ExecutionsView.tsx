import { useState } from "preact/hooks";

import { api, messageOf, type Schemas } from "../api/client";
import { allows } from "../api/me";
import { href } from "../app/router";
import { duration, fullMoment, moment, number } from "../components/format";
import { now } from "../components/now";
import { toast } from "../components/toasts";
import { usePolled } from "../kernel/polled";
import { ExecutionDetails } from "./ExecutionDetails";
import { ended, type Span, spansOf } from "./spans";
import "./executions.css";

export type Execution = Schemas["ExecutionModel"];

const PERIOD = 2000;
const PAGE = 100;

/** The executions of a kernel, the newest first, each with its part of the time line. */
export default function ExecutionsView({ id, chosen }: { id: string; chosen: string | null }) {
  const [before, setBefore] = useState<readonly string[]>([]);
  const older = before.at(-1);
  const [listed, problem] = usePolled(
    async () => {
      const query = { limit: PAGE, ...(older !== undefined && { before: older }) };
      const { data, error } = await api.GET("/api/kernels/{kernel_id}/executions", {
        params: { path: { kernel_id: id }, query },
      });
      if (data === undefined) throw new Error(messageOf(error));
      return data;
    },
    PERIOD,
    [id, older],
  );
  if (chosen !== null) return <ExecutionDetails id={id} execution={chosen} />;
  if (listed === null) return <p class="loading">{problem || "Loading …"}</p>;
  if (listed.length === 0) return <p class="muted">This kernel has executed nothing yet.</p>;
  const first = listed[0]?.id;
  return (
    <section aria-label="Executions">
      <Timeline id={id} executions={listed} />
      <div class="actions">
        {before.length > 0 && (
          <button type="button" onClick={() => setBefore(before.slice(0, -1))}>
            Newer
          </button>
        )}
        {listed.length === PAGE && first !== undefined && (
          <button type="button" onClick={() => setBefore([...before, first])}>
            Older
          </button>
        )}
      </div>
      <p class="hint">The server knows the last 1,000 that have ended. Times are those of your zone.</p>
    </section>
  );
}

function Timeline({ id, executions }: { id: string; executions: readonly Execution[] }) {
  const spans = spansOf(executions, now.value);
  return (
    <div class="table-scroll" role="region" aria-label="Timeline of executions" tabIndex={0}>
      <table class="executions">
        <thead>
          <tr>
            <th scope="col">Execution</th>
            <th scope="col">State</th>
            <th scope="col">Asked for</th>
            <th scope="col">Waited</th>
            <th scope="col">Ran</th>
            <th scope="col" class="wide">
              Time line
            </th>
            <th scope="col">
              <span class="visually-hidden">Actions</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {executions.map((execution, index) => ({ execution, span: spans[index] })).reverse().map(({ execution, span }) => (
            <Line key={execution.id} id={id} execution={execution} span={span} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Line({ id, execution, span }: { id: string; execution: Execution; span: Span | undefined }) {
  const queued = new Date(execution.queued);
  const name = execution.execution_count === null ? execution.id.slice(0, 12) : `[${number(execution.execution_count)}]`;
  return (
    <tr>
      <th scope="row">
        <a href={href("kernels", id, "executions", execution.id)} class="mono">
          {name}
        </a>
      </th>
      <td>
        <State execution={execution} />
      </td>
      <td>
        <time dateTime={queued.toISOString()} title={fullMoment(queued)}>
          {moment(queued)}
        </time>
      </td>
      <td>{span === undefined ? "–" : duration(span.waited)}</td>
      <td>{span === undefined || span.ran === null ? "–" : duration(span.ran)}</td>
      <td class="wide">{span !== undefined && <Bar span={span} state={execution.state} />}</td>
      <td>{!ended(execution) && <Cancel id={id} execution={execution} />}</td>
    </tr>
  );
}

export function State({ execution }: { execution: Execution }) {
  return (
    <span class={`ex-state ex-${execution.state}`} title={execution.reason ?? undefined}>
      {execution.state}
      {execution.input_request !== null && ", asks for input"}
    </span>
  );
}

/** Where an execution is in the time of all that are listed. The figures beside it tell the same. */
function Bar({ span, state }: { span: Span; state: string }) {
  return (
    <span class="bar-track" aria-hidden="true">
      <span class="bar-waited" style={{ left: `${span.left}%`, width: `${span.waitedWidth}%` }} />
      <span class={`bar-ran bar-${state}`} style={{ left: `${span.left + span.waitedWidth}%`, width: `${span.ranWidth}%` }} />
    </span>
  );
}

export function Cancel({ id, execution }: { id: string; execution: Execution }) {
  const [asked, setAsked] = useState(false);
  const cancel = async (): Promise<void> => {
    setAsked(true);
    try {
      const { error } = await api.POST("/api/kernels/{kernel_id}/executions/{execution_id}/cancel", {
        params: { path: { kernel_id: id, execution_id: execution.id } },
        body: {},
      });
      if (error !== undefined) throw new Error(messageOf(error));
    } catch (error) {
      setAsked(false);
      toast(`It could not be cancelled: ${messageOf(error)}`, { kind: "error" });
    }
  };
  if (!allows("kernels", "execute")) return null;
  return (
    <button type="button" class="danger" disabled={asked} onClick={() => void cancel()}>
      {asked ? "Cancelling …" : "Cancel"}
      <span class="visually-hidden"> execution {execution.id.slice(0, 12)}</span>
    </button>
  );
}

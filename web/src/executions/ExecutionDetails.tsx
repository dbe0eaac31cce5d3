import { api, messageOf, type Schemas } from "../api/client";
import { href } from "../app/router";
import { bytes, duration, fullMoment, number } from "../components/format";
import { useCode } from "./code";
import { usePolled } from "../kernel/polled";
import { Outputs, rowsOfOutputs } from "../output";
import { Cancel, State } from "./ExecutionsView";
import { ended } from "./spans";
import "../kernel/kernel.css";

type Result = Schemas["ExecutionResultModel"];

const PERIOD = 1500;
const MOST_BYTES = 2 * 2 ** 20;

/** One execution: its code, how it went, and what it has put out. */
export function ExecutionDetails({ id, execution }: { id: string; execution: string }) {
  const [result, problem] = usePolled(
    async (last: Result | null) => {
      if (last !== null && ended(last)) return last;
      const { data, error } = await api.GET("/api/kernels/{kernel_id}/executions/{execution_id}", {
        params: { path: { kernel_id: id, execution_id: execution }, query: { max_bytes: MOST_BYTES } },
      });
      if (data === undefined) throw new Error(messageOf(error));
      return data;
    },
    PERIOD,
    [id, execution],
  );
  const code = useCode(id, result);
  return (
    <section aria-label="Execution">
      <p>
        <a href={href("kernels", id, "executions")}>All executions</a>
      </p>
      {result === null ? <p class="loading">{problem || "Loading …"}</p> : <Details id={id} result={result} code={code} />}
    </section>
  );
}

function Details({ id, result, code }: { id: string; result: Result; code: string | null }) {
  const { gap, cut } = result;
  return (
    <>
      <h2 class="mono kernel-id">{result.id}</h2>
      <div class="actions bar">
        <State execution={result} />
        {!ended(result) && <Cancel id={id} execution={result} />}
        {result.first_seq !== null && (
          <a class="button" href={`${href("kernels", id, "output")}?from=${Math.max(0, result.first_seq - 1)}`}>
            In the kernel's output
          </a>
        )}
      </div>
      {result.reason !== null && <p class="notice error">{result.reason}</p>}
      <Times result={result} />
      <h3>Code</h3>
      {code === null ? (
        <p class="muted">The log does not have the code any more, or it was sent silently.</p>
      ) : (
        <pre class="code-whole mono" tabIndex={0}>
          {code}
        </pre>
      )}
      <h3>Output</h3>
      {gap !== null && (
        <p class="notice gap">
          {number(gap.messages)} messages ({bytes(gap.bytes)}) are missing: the log does not have them any more.
        </p>
      )}
      {cut !== null && <p class="notice">Of a long output the beginning and the end are shown here.</p>}
      {result.outputs.length === 0 && <p class="muted">None.</p>}
      <Outputs rows={rowsOfOutputs(result.outputs)} />
    </>
  );
}

function Times({ result }: { result: Result }) {
  const shown: [string, string | null][] = [
    ["Asked for", result.queued],
    ["Begun", result.started],
    ["Ended", result.ended],
  ];
  return (
    <dl class="facts">
      {shown.map(([name, time]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{time === null ? "–" : <time dateTime={time}>{fullMoment(new Date(time))}</time>}</dd>
        </div>
      ))}
      <div>
        <dt>Ran</dt>
        <dd>{result.seconds === null ? "–" : duration(result.seconds)}</dd>
      </div>
      <div>
        <dt>Session</dt>
        <dd class="mono">{result.session}</dd>
      </div>
      <div>
        <dt>Process</dt>
        <dd>{result.generation ?? "–"}</dd>
      </div>
      {result.steps.map((step) => (
        <div key={step.time}>
          <dt>{step.step}</dt>
          <dd>
            {fullMoment(new Date(step.time))} {step.detail}
          </dd>
        </div>
      ))}
    </dl>
  );
}

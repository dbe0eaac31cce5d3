import { api, type KernelUsage, messageOf } from "../api/client";
import { bytes, moment, number } from "../components/format";
import { Chart } from "./Chart";
import { usePolled } from "./polled";
import { latest, type Point, pointsOf } from "./usagePoints";

const PERIOD = 5000;
const LISTED = 12;

/** What a kernel takes of the machine, over the last ten minutes. */
export default function UsageView({ id }: { id: string }) {
  const [usage, problem] = usePolled(
    async () => {
      const { data, error } = await api.GET("/api/kernels/{kernel_id}/usage", {
        params: { path: { kernel_id: id }, query: { history: true } },
      });
      if (data === undefined) throw new Error(messageOf(error));
      return data;
    },
    PERIOD,
    [id],
  );
  if (usage === null) return <p class="loading">{problem || "Loading …"}</p>;
  const points = pointsOf(usage);
  return (
    <section aria-label="Usage">
      {problem !== "" && <p class="notice error">{problem}</p>}
      <Now usage={usage} />
      {points.length < 2 && <p class="hint">Kernels are measured while somebody looks: a line comes within some seconds.</p>}
      <Chart title="Memory" points={points} value={(point) => point.memory} format={bytes} limit={usage.limits["memory"]?.value ?? null} />
      <Chart title="Processors" points={points} value={(point) => point.cpu} format={cpus} limit={usage.limits["cpu"]?.value ?? null} />
      <Chart title="Messages a second" points={points} value={(point) => point.rate} format={rate} limit={null} />
      <Listed points={points} />
    </section>
  );
}

function cpus(value: number | null): string {
  return value === null ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

function rate(value: number | null): string {
  return value === null ? "–" : number(Math.round(value * 10) / 10);
}

function Now({ usage }: { usage: KernelUsage }) {
  const facts: [string, string][] = [
    ["Memory", bytes(usage.memory) + limited(usage, "memory", bytes)],
    ["Processors", cpus(usage.cpu) + limited(usage, "cpu", cpus)],
    ["Processor time", usage.cpu_seconds === null ? "–" : `${number(Math.round(usage.cpu_seconds))} s`],
    ["Processes", String(usage.processes ?? "–")],
    ["Threads", String(usage.threads ?? "–")],
    ["Open files", String(usage.open_files ?? "–")],
    ["Messages", number(usage.messages)],
    ["Said", bytes(usage.bytes_said)],
    ["Executions", number(usage.executions)],
    ["Process id", String(usage.pid ?? "–")],
  ];
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function limited(usage: KernelUsage, name: string, format: (value: number) => string): string {
  const limit = usage.limits[name];
  return limit === undefined ? "" : ` of ${format(limit.value)}`;
}

/** The figures of the lines, for who cannot see these. */
function Listed({ points }: { points: readonly Point[] }) {
  return (
    <details>
      <summary>The last figures as a table</summary>
      <table class="figures">
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Memory</th>
            <th scope="col">Processors</th>
            <th scope="col">Messages a second</th>
          </tr>
        </thead>
        <tbody>
          {latest(points, LISTED).map((point) => (
            <tr key={point.at}>
              <th scope="row">{moment(new Date(point.at))}</th>
              <td>{bytes(point.memory)}</td>
              <td>{cpus(point.cpu)}</td>
              <td>{rate(point.rate)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

import { api, messageOf, request, type Schemas } from "../api/client";
import { fullMoment, moment } from "../components/format";
import { Plain } from "../output/Rich";
import { detailsOfEvent, nameOfEvent } from "./events";
import { pathOf } from "./paths";
import { usePolled } from "./polled";

const PERIOD = 3000;

/** What has happened to a kernel lately, and what its process itself has written. */
export default function EventsView({ id }: { id: string }) {
  return (
    <>
      <Events id={id} />
      <ProcessOutput id={id} />
    </>
  );
}

function Events({ id }: { id: string }) {
  const [events, problem] = usePolled(
    async () => {
      const { data, error } = await api.GET("/api/kernels/{kernel_id}/events", {
        params: { path: { kernel_id: id }, query: { no_track_activity: "1" } as never },
      });
      if (data === undefined) throw new Error(messageOf(error));
      return data;
    },
    PERIOD,
    [id],
  );
  return (
    <section aria-label="Events">
      <h2>Events</h2>
      {problem !== "" && <p class="notice error">{problem}</p>}
      {events?.length === 0 && <p class="muted">Nothing that this server knows.</p>}
      <ul class="events" aria-live="polite">
        {/* Two may be alike. The newest comes first, so each keeps its number from the end. */}
        {events?.map((event, index) => (
          <li key={`${event.at} ${event.event} ${events.length - index}`}>
            <time dateTime={event.at} title={fullMoment(new Date(event.at))}>
              {moment(new Date(event.at))}
            </time>
            <strong>{nameOfEvent(event)}</strong>
            <span>{detailsOfEvent(event)}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** The end of what the process wrote by itself, past all messages: crashes and warnings are there. */
function ProcessOutput({ id }: { id: string }) {
  const [output, problem] = usePolled(
    async () => {
      const response = await request(pathOf(id, "process_output"));
      if (response.ok) return response.text();
      const said = (await response.json().catch(() => ({}))) as Partial<Schemas["ErrorModel"]>;
      throw new Error(said.message ?? response.statusText);
    },
    PERIOD,
    [id],
  );
  return (
    <section aria-label="Process output">
      <h2>What its process wrote</h2>
      {problem !== "" && <p class="notice error">{problem}</p>}
      {output === "" && <p class="muted">Nothing.</p>}
      {output !== null && output !== "" && (
        <div class="process-output" tabIndex={0} role="region" aria-label="Output of the process">
          <Plain source={output} />
        </div>
      )}
    </section>
  );
}

import { useEffect, useState } from "preact/hooks";

import { request, type Schemas } from "../api/client";
import { token } from "../app/token";
import { fullMoment, moment } from "../components/format";
import { Plain } from "../output/Rich";
import { type KernelEvent, eventsOf, MOST_EVENTS } from "./events";
import { pathOf } from "./paths";
import { listen } from "./subscription";
import { usePolled } from "./polled";

const PERIOD = 5000;

/** What happens to a kernel, from now on, and what its process itself has written. */
export default function EventsView({ id }: { id: string }) {
  return (
    <>
      <Events id={id} />
      <ProcessOutput id={id} />
    </>
  );
}

function Events({ id }: { id: string }) {
  const [events, setEvents] = useState<readonly KernelEvent[]>([]);
  const [problem, setProblem] = useState("");
  const shown = token.value;
  useEffect(() => {
    setEvents([]);
    return listen({
      event: (text) => {
        const found = eventsOf(text, id);
        if (found !== null) setEvents((before) => [found, ...before].slice(0, MOST_EVENTS));
      },
      problem: setProblem,
    });
  }, [id, shown]);
  return (
    <section aria-label="Events">
      <h2>Events</h2>
      {problem !== "" && <p class="notice">{problem}</p>}
      {events.length === 0 ? (
        <p class="muted">Nothing has happened since this view was opened.</p>
      ) : (
        <ul class="events" aria-live="polite">
          {events.map((event) => (
            <li key={event.key}>
              <time dateTime={event.at} title={fullMoment(new Date(event.at))}>
                {moment(new Date(event.at))}
              </time>
              <strong>{event.name}</strong>
              <span>{event.details}</span>
            </li>
          ))}
        </ul>
      )}
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

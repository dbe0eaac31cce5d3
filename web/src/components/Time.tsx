import { duration, fullMoment } from "./format";
import { now } from "./now";

/** How long ago a moment was, which goes on counting; the moment itself is its title. */
export function Ago({ since }: { since: string | Date }) {
  const when = new Date(since);
  const seconds = Math.max(0, Math.floor((now.value - when.getTime()) / 1000));
  return (
    <time dateTime={when.toISOString()} title={fullMoment(when)}>
      {duration(seconds)}
    </time>
  );
}

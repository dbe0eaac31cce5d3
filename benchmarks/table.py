"""The lines of the table, their targets, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Results
from benchmarks.servers import FORWARDER
from benchmarks.starting import WARM, WAYS

__all__ = ["LINES", "Line", "markdown", "verdict"]

OURS: Final = "kernelkeep"
BARE: Final = "bare sockets"

Row = Mapping[str, float | None]
Target = Callable[[Row], bool | None]
"""Whether a row meets its target; None if it cannot be told."""


@dataclass(frozen=True)
class Line:
    """A line of the table: the key of its figures, and what kernelkeep is to reach."""

    key: str
    measure: str
    title: str
    unit: str
    target: str = ""
    check: Target | None = None
    more_is_better: bool = False


def _peers(row: Row) -> list[float]:
    own = (OURS, BARE, FORWARDER, *WAYS)
    return [value for name, value in row.items() if name not in own and value is not None]


def at_most(bound: float) -> Target:
    """Our figure is at most this."""
    return lambda row: None if row.get(OURS) is None else (row[OURS] or 0.0) <= bound


def warm_at_most(bound: float) -> Target:
    """The figure of kernels that are kept warm is at most this."""
    return lambda row: None if row.get(WARM) is None else (row[WARM] or 0.0) <= bound


def at_least(bound: float, *, or_bare: bool = False) -> Target:
    """Our figure is at least this (or, if so said, the bare sockets')."""

    def check(row: Row) -> bool | None:
        ours, bare = row.get(OURS), row.get(BARE)
        if ours is None:
            return None
        return ours >= bound or (or_bare and bare is not None and ours >= bare)

    return check


def times_bare(factor: float) -> Target:
    """Our figure is at most so many times the bare sockets'."""

    def check(row: Row) -> bool | None:
        ours, bare = row.get(OURS), row.get(BARE)
        return None if ours is None or bare is None else ours <= factor * bare

    return check


def times_best_peer(factor: float) -> Target:
    """Our figure is at least so many times the best peer's."""

    def check(row: Row) -> bool | None:
        ours, peers = row.get(OURS), _peers(row)
        return None if ours is None or not peers else ours >= factor * max(peers)

    return check


def ahead_of(server: str, factor: float) -> Target:
    """Our figure, of which less is better, is at most so much of a peer's."""

    def check(row: Row) -> bool | None:
        ours, theirs = row.get(OURS), row.get(server)
        return None if ours is None or theirs is None else ours * factor <= theirs

    return check


def no_less_than_bare(row: Row) -> bool | None:
    """Our figure is at least the bare sockets'."""
    ours, bare = row.get(OURS), row.get(BARE)
    return None if ours is None or bare is None else ours >= bare


def both(*checks: Target) -> Target:
    """All of these hold; not known only where none fails and one cannot be told."""

    def check(row: Row) -> bool | None:
        found = [each(row) for each in checks]
        return False if False in found else None if None in found else True

    return check


def best_of_all(row: Row) -> bool | None:
    """No server has a lower figure than ours."""
    ours, peers = row.get(OURS), _peers(row)
    return None if ours is None or not peers else ours <= min(peers)


LINES: Final = (
    Line(
        *("round_trip_v1_p50", "round trips", "Round trip of a tiny execution, v1, p50", "ms"),
        "≤ 3 × bare sockets, ≥ 50 × ahead of jupyter_server",
        both(times_bare(3), ahead_of("jupyter_server", 50)),
    ),
    Line("round_trip_v1_p99", "round trips", "… p99", "ms"),
    Line(
        *("round_trip_legacy_p50", "round trips", "… legacy framing, p50", "ms"),
    ),
    Line("round_trip_legacy_p99", "round trips", "… p99", "ms"),
    Line("round_trip_cpu", "round trips", "Server CPU per tiny execution", "µs"),
    Line(
        *("iopub_v1_100", "floods", "iopub 100 B, v1, one client", "messages/s"),
        *("≥ 80,000, no less than bare sockets", both(at_least(80_000), no_less_than_bare)),
        more_is_better=True,
    ),
    Line(
        *("iopub_v1_100_cpu", "floods", "… server CPU per 100,000 messages", "s"),
        *("≤ 1.0", at_most(1.0)),
    ),
    Line(
        *("iopub_v1_10k", "floods", "iopub 10 kB", "MB/s", "≥ 300", at_least(300)),
        more_is_better=True,
    ),
    Line(
        *("iopub_v1_1M", "floods", "iopub 1 MB", "MB/s"),
        *("≥ 900 or bare sockets", at_least(900, or_bare=True)),
        more_is_better=True,
    ),
    Line("iopub_v1_50M", "floods", "iopub 50 MB", "MB/s", more_is_better=True),
    Line("iopub_v1_100_lost", "floods", "… lost of those", "%", "0", at_most(0)),
    Line(
        "iopub_legacy_100",
        "legacy floods",
        "iopub 100 B, legacy framing",
        "messages/s",
        more_is_better=True,
    ),
    Line("iopub_legacy_100_cpu", "legacy floods", "… server CPU per 100,000 messages", "s"),
    Line("iopub_legacy_10k", "legacy floods", "iopub 10 kB, legacy", "MB/s", more_is_better=True),
    Line("iopub_legacy_1M", "legacy floods", "iopub 1 MB, legacy", "MB/s", more_is_better=True),
    Line(
        *("ten_clients", "ten clients", "iopub 100 B, ten clients", "deliveries/s"),
        *("≥ 250,000", at_least(250_000)),
        more_is_better=True,
    ),
    Line(
        *("keep_100", "keeping", "iopub 100 B, v1, kernels outlive the server", "messages/s"),
        more_is_better=True,
    ),
    Line(
        *("keep_without_100", "keeping", "… in turn with it, kernels end with it", "messages/s"),
        more_is_better=True,
    ),
    Line("keep_cost", "keeping", "… so keeping costs", "%", "≤ 5", at_most(5)),
    Line("keep_cpu", "keeping", "… server CPU per 100,000 messages at 20,000/s", "s"),
    Line("keep_without_cpu", "keeping", "… in turn with it, kernels end with it", "s"),
    Line("keeper_cpu", "keeping", "… the keeper's CPU per 100,000 messages", "s"),
    Line("keeper_memory", "keeping", "The keeper's memory, one kernel", "MB"),
    Line(
        *("open_to_reply", "opening", "WebSocket open to first reply, running kernel", "ms"),
        *("≤ 5", at_most(5)),
    ),
    Line(
        *("list_200", "many kernels", "GET /api/kernels, 200 kernels", "requests/s"),
        *("≥ 4 × best peer", times_best_peer(4)),
        more_is_better=True,
    ),
    Line("list_20", "many kernels", "… 20 kernels", "requests/s", more_is_better=True),
    Line("list_1", "many kernels", "… 1 kernel", "requests/s", more_is_better=True),
    Line(
        *("get_one", "many kernels", "GET /api/kernels/{id}", "requests/s"),
        *("≥ 4 × best peer", times_best_peer(4)),
        more_is_better=True,
    ),
    Line(
        *("neighbour_20000", "neighbour", "Round trip while another kernel says 20,000/s", "ms"),
        *("≤ 3", at_most(3)),
    ),
    Line(
        "neighbour_max", "neighbour", "… while it says as much as it can", "ms", "≤ 3", at_most(3)
    ),
    Line(
        *("neighbour_rest_20000", "neighbour", "REST p99 while another says 20,000/s", "ms"),
        *("≤ 10", at_most(10)),
    ),
    Line("neighbour_rest_max", "neighbour", "… as much as it can", "ms", "≤ 10", at_most(10)),
    Line(
        *("chatter_cpu", "many kernels", "150 kernels at 10 messages/s: server CPU", "% of a core"),
        *("≤ 20", at_most(20)),
    ),
    Line("chatter_p99", "many kernels", "… delay, p99", "ms", "≤ 5", at_most(5)),
    Line(
        *("idle_cpu", "many kernels", "200 idle kernels, 150 clients: server CPU", "% of a core"),
        *("≤ 0.3", at_most(0.3)),
    ),
    Line("kernel_memory", "many kernels", "Server memory per kernel", "kB"),
    Line("connection_memory", "connections", "Server memory per connection", "kB"),
    Line(
        "connections",
        "connections",
        "Connections opened in 30 s, of 1,000",
        "",
        more_is_better=True,
    ),
    Line("start_to_201", "starting", "POST to 201 (ipykernel)", "ms"),
    Line(
        *("start_to_reply", "starting", "POST to first reply", "ms"),
        *(
            "≤ 0.25 × jupyter_server, ≤ 40 warm",
            both(ahead_of("jupyter_server", 4), warm_at_most(40)),
        ),
    ),
    Line(
        *("restart_to_reply", "starting", "Restart to first reply", "ms"),
        *("≤ 0.3 × jupyter_server", ahead_of("jupyter_server", 1 / 0.3)),
    ),
    Line(
        *("twenty_starts", "starting", "20 starts at once, to the last first reply", "s"),
        *("≤ 0.35 × jupyter_server", ahead_of("jupyter_server", 1 / 0.35)),
    ),
    Line(
        *("idle_kernels_pss", "idle memory", "50 idle Python kernels, PSS", "MB"),
        *("≤ 830", at_most(830)),
    ),
    Line("lost_ipykernel", "losses", "Lost: ipykernel printing", "%", "0", at_most(0)),
    Line("lost_40000", "losses", "Lost: publisher that drops, 40,000/s", "%", "0", at_most(0)),
    Line("lost_max", "losses", "… at its maximum", "%", "best of all servers", best_of_all),
    Line(
        *("slow_reader_lost", "slow reader", "One reader stopped, 500 MB: the other lacks", "%"),
        *("0", at_most(0)),
    ),
    Line(
        *("slow_reader_memory", "slow reader", "… server memory, more than before", "MB"),
        *("≤ 64", at_most(64)),
    ),
)


def verdict(line: Line, results: Results) -> str:
    """Whether kernelkeep meets the target of a line, in a word; empty if it has none."""
    if line.check is None:
        return ""
    met = line.check(results.row(line.key))
    return "?" if met is None else "met" if met else "**not met**"


def markdown(results: Results) -> str:
    """The table, a line each, and the problems behind it."""
    head = ["", *results.servers, "target", ""]
    rows = [head, ["---", *["---:" for _ in results.servers], "---", "---"]]
    for line in LINES:
        row = results.row(line.key)
        problems = results.problems.get(line.measure, {})
        if not problems and all(value is None for value in row.values()):
            continue
        cells = [
            "!" if row[server] is None and server in problems else number(row[server])
            for server in results.servers
        ]
        title = f"{line.title}, {line.unit}" if line.unit else line.title
        rows.append([title, *cells, line.target, verdict(line, results)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [
        f"- {measure}, {server}: {problem}"
        for measure, found in results.problems.items()
        for server, problem in found.items()
    ]
    return "\n\n".join([table, *(["! is explained here:", "\n".join(notes)] if notes else [])])


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"

"""The lines of the table, their targets, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from benchmarks.columns import BARE, BEFORE, FORWARDER, OURS, WARM, is_peer
from benchmarks.figures import Results

__all__ = ["LINES", "Line", "markdown", "verdict"]

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
    return [value for name, value in row.items() if is_peer(name) and value is not None]


def _compare(other: str, holds: Callable[[float, float], bool]) -> Target:
    """How our figure is to that of another column."""

    def check(row: Row) -> bool | None:
        ours, theirs = row.get(OURS), row.get(other)
        return None if ours is None or theirs is None else holds(ours, theirs)

    return check


def at_most(bound: float, column: str = OURS) -> Target:
    """Our figure, or that of our column with other settings, is at most this."""

    def check(row: Row) -> bool | None:
        value = row.get(column)
        return None if value is None else value <= bound

    return check


def at_least(bound: float) -> Target:
    """Our figure is at least this."""

    def check(row: Row) -> bool | None:
        ours = row.get(OURS)
        return None if ours is None else ours >= bound

    return check


def at_most_times(factor: float, other: str) -> Target:
    """Our figure is at most so many times that of another column."""
    return _compare(other, lambda ours, theirs: ours <= factor * theirs)


def at_least_times(factor: float, other: str) -> Target:
    """Our figure is at least so many times that of another column."""
    return _compare(other, lambda ours, theirs: ours >= factor * theirs)


def times_best_peer(factor: float) -> Target:
    """Our figure is at least so many times the best peer's."""

    def check(row: Row) -> bool | None:
        ours, peers = row.get(OURS), _peers(row)
        return None if ours is None or not peers else ours >= factor * max(peers)

    return check


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


class _Goal(NamedTuple):
    """A target in words, and what tells whether it is met."""

    target: str = ""
    check: Target | None = None


_NONE: Final = _Goal()


def _costs(
    key: str,
    measure: str,
    title: str,
    unit: str,
    *,
    server: _Goal = _NONE,
    together: _Goal = _NONE,
) -> tuple[Line, Line, Line]:
    """The lines of what is used (`benchmarks.usage.Costs`): server, keeper, both together."""
    return (
        Line(key, measure, f"{title}: server", unit, *server),
        Line(f"{key}_keeper", measure, "… keeper", unit),
        Line(f"{key}_both", measure, "… both together", unit, *together),
    )


def _no_more_than_before() -> _Goal:
    return _Goal("≤ before", at_most_times(1, BEFORE))


JUPYTER: Final = "jupyter_server"

LINES: Final = (
    Line(
        *("round_trip_v1_p50", "round trips", "Round trip of a tiny execution, v1, p50", "ms"),
        "≤ 3.5 × bare sockets, ≥ 40 × ahead of jupyter_server",
        both(at_most_times(3.5, BARE), at_most_times(1 / 40, JUPYTER)),
    ),
    Line("round_trip_v1_p99", "round trips", "… p99", "ms"),
    Line("round_trip_legacy_p50", "round trips", "… legacy framing, p50", "ms"),
    Line("round_trip_legacy_p99", "round trips", "… p99", "ms"),
    *_costs("round_trip_cpu", "round trips", "CPU per tiny execution", "µs"),
    Line(
        *("iopub_v1_100", "floods", "iopub 100 B, v1, one client", "messages/s"),
        *("≥ 1.0 × bare sockets", at_least_times(1, BARE)),
        more_is_better=True,
    ),
    *_costs(
        *("iopub_v1_100_cpu", "floods", "… CPU per 100,000 messages", "s"),
        server=_Goal("≤ 0.5 × before", at_most_times(0.5, BEFORE)),
        together=_no_more_than_before(),
    ),
    Line("iopub_v1_100_lost", "floods", "… lost of those", "%", "0", at_most(0)),
    Line(
        *("iopub_v1_10k", "floods", "iopub 10 kB", "MB/s"),
        *("≥ 0.8 × bare sockets", at_least_times(0.8, BARE)),
        more_is_better=True,
    ),
    Line("iopub_v1_10k_lost", "floods", "… lost of those", "%", "0", at_most(0)),
    Line(
        *("iopub_v1_1M", "floods", "iopub 1 MB", "MB/s"),
        "≥ 0.6 × bare sockets, ≥ 2 × best peer",
        both(at_least_times(0.6, BARE), times_best_peer(2)),
        more_is_better=True,
    ),
    Line("iopub_v1_1M_lost", "floods", "… lost of those", "%", "0", at_most(0)),
    Line(
        *("iopub_v1_50M", "large outputs", "iopub 50 MB, three in a row", "MB/s"),
        *("≥ 1.2 × best peer", times_best_peer(1.2)),
        more_is_better=True,
    ),
    Line("iopub_v1_50M_lost", "large outputs", "… lost of those", "%", "0", at_most(0)),
    *_costs("steady_cpu", "steady", "CPU per 100,000 messages at 20,000/s", "s"),
    Line("keeper_memory", "steady", "The keeper's memory, one kernel", "MB"),
    Line(
        "iopub_legacy_100",
        "legacy floods",
        "iopub 100 B, legacy framing",
        "messages/s",
        more_is_better=True,
    ),
    *_costs("iopub_legacy_100_cpu", "legacy floods", "… CPU per 100,000 messages", "s"),
    Line("iopub_legacy_10k", "legacy floods", "iopub 10 kB, legacy", "MB/s", more_is_better=True),
    Line("iopub_legacy_1M", "legacy floods", "iopub 1 MB, legacy", "MB/s", more_is_better=True),
    Line(
        *("ten_clients", "ten clients", "iopub 100 B, ten clients", "deliveries/s"),
        *("≥ before", at_least_times(1, BEFORE)),
        more_is_better=True,
    ),
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
    Line("neighbour_rest_20000_p50", "neighbour", "… REST p50", "ms"),
    Line("neighbour_rest_20000_p99", "neighbour", "… REST p99", "ms", "≤ 10", at_most(10)),
    Line(
        *("neighbour_max", "neighbour", "Round trip while it says as much as it can", "ms"),
        *("≤ 3", at_most(3)),
    ),
    Line("neighbour_rest_max_p50", "neighbour", "… REST p50", "ms", "≤ 2", at_most(2)),
    Line("neighbour_rest_max_p99", "neighbour", "… REST p99", "ms", "≤ 10", at_most(10)),
    *_costs(
        *("chatter_cpu", "many kernels", "150 kernels at 10 messages/s, CPU", "% of a core"),
        server=_Goal("≤ 1.3 × bare forwarder", at_most_times(1.3, FORWARDER)),
        together=_Goal("≤ 1.3 × bare forwarder", at_most_times(1.3, FORWARDER)),
    ),
    Line("chatter_p99", "many kernels", "… delay, p99", "ms", "≤ 5", at_most(5)),
    *_costs(
        *("idle_cpu", "many kernels", "200 idle kernels, 150 clients, CPU", "% of a core"),
        server=_Goal("≤ 0.3", at_most(0.3)),
    ),
    *_costs("kernel_memory", "many kernels", "Memory per kernel", "kB"),
    Line("connection_memory", "connections", "Server memory per connection", "kB"),
    Line(
        "connections",
        "connections",
        "Connections opened in 30 s, of 1,000",
        "",
        more_is_better=True,
    ),
    Line("thousand_start", "thousand kernels", "1,000 idle kernels: all started in", "s"),
    *_costs(
        *("thousand_memory", "thousand kernels", "… memory per kernel", "kB"),
        together=_Goal("≤ 100", at_most(100)),
    ),
    *_costs(
        *("thousand_idle_cpu", "thousand kernels", "… CPU", "% of a core"),
        together=_Goal("≤ 1", at_most(1)),
    ),
    *_costs(
        *("thousand_descriptors", "thousand kernels", "… descriptors per kernel", ""),
        together=_Goal("≤ 6", at_most(6)),
    ),
    Line(
        *("thousand_chatter_p99", "thousand kernels", "The same at 1 message/s, delay, p99", "ms"),
        *("≤ 20", at_most(20)),
    ),
    *_costs(
        *("thousand_chatter_cpu", "thousand kernels", "… CPU", "% of a core"),
        together=_Goal("≤ 40", at_most(40)),
    ),
    Line(
        *("four_thousand", "four thousand kernels", "Of 4,000 kernels, run something", ""),
        *("4,000", at_least(4000)),
        more_is_better=True,
    ),
    Line("four_thousand_seconds", "four thousand kernels", "… all started and asked in", "s"),
    Line("start_to_201", "starting", "POST to 201 (ipykernel, from the second on)", "ms"),
    Line(
        *("start_to_reply", "starting", "POST to first reply", "ms"),
        "≤ 0.25 × jupyter_server, ≤ 40 warm",
        both(at_most_times(0.25, JUPYTER), at_most(40, WARM)),
    ),
    Line(
        *("restart_to_reply", "starting", "Restart to first reply", "ms"),
        *("≤ 0.3 × jupyter_server", at_most_times(0.3, JUPYTER)),
    ),
    Line(
        *("twenty_starts", "starting", "20 starts at once, to the last first reply", "s"),
        *("≤ 0.35 × jupyter_server", at_most_times(0.35, JUPYTER)),
    ),
    Line(
        *("idle_kernels_pss", "idle memory", "50 idle Python kernels, PSS", "MB"),
        *("≤ 950", at_most(950)),
    ),
    Line("lost_ipykernel", "losses", "Lost: ipykernel printing", "%", "0", at_most(0)),
    Line("lost_40000", "losses", "Lost: publisher that drops, 40,000/s", "%", "0", at_most(0)),
    Line("lost_max", "losses", "… at its maximum", "%", "best of all servers", best_of_all),
    Line(
        *("slow_reader_lost", "slow reader", "One reader stopped, 500 MB: the other lacks", "%"),
        *("0", at_most(0)),
    ),
    Line(
        *("slow_reader_memory", "slow reader", "… memory, more than before: server", "MB"),
        *("≤ 32", at_most(32)),
    ),
    Line(
        *("slow_reader_memory_keeper", "slow reader", "… keeper", "MB", "≤ 32", at_most(32)),
    ),
    *_costs("slow_reader_left", "slow reader", "… memory left 5 s later", "MB"),
    Line(
        *("adoption", "adoption", "100 kernels adopted after kill -9: start longer by", "s"),
        *("≤ 0.5", at_most(0.5)),
    ),
    Line("adoption_log", "adoption", "… as the server says itself", "s", "≤ 0.5", at_most(0.5)),
    Line("adoption_reply", "adoption", "… until each has run something", "s"),
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
    if not notes:
        return table
    explained = "What is missing (!), or not the whole measure, is explained here:"
    return "\n\n".join([table, explained, "\n".join(notes)])


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"

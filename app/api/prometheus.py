"""The server's metrics for Prometheus, put together at each request for them.

This module stores nothing: one collector reads the state of the kernels, and the sums of
`Counters`. So a gauge cannot drift from the truth, and counting costs no more than an addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .. import __version__
from ..managers.kernels.multikernel import MultiKernelManager
from ..managers.state import Lifecycle
from ..managers.telemetry.counters import Counters, Durations, Tally
from ..managers.telemetry.lag import LoopLag

__all__ = ["Metrics"]

_STATES: Final = frozenset(
    {"starting", "idle", "busy", "restarting", "terminating", "unknown", "dead"}
)


class Metrics:
    """The metrics of one server, in a Prometheus registry of their own.

    Make it inside a running event loop, and `close` it there.
    """

    def __init__(
        self, kernels: MultiKernelManager, counters: Counters, *, by_owner: bool = False
    ) -> None:
        self.counters = counters
        self._owned = kernels if by_owner else None
        self._lag = LoopLag(counters.lag_seconds)
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_Collector(kernels, counters))
        if by_owner:
            self._registry.register(_Owners(kernels))

    async def refresh(self) -> None:
        """Bring the figures that take a while to measure up to date, within some seconds."""
        if self._owned is not None:
            await self._owned.usage.refresh(self._owned)

    def exposition(self) -> bytes:
        """All metrics, in Prometheus's text format (`prometheus_client.CONTENT_TYPE_LATEST`)."""
        # In the loop's thread, and without an await: no kernel comes or goes, and no counter moves,
        # while the collectors look.
        self._lag.watch()
        return generate_latest(self._registry)

    def close(self) -> None:
        """Stop measuring the lag of the event loop."""
        self._lag.close()


class _Collector(Collector):
    """Makes the metrics from the state of the kernels and the counters, at each request."""

    def __init__(self, kernels: MultiKernelManager, counters: Counters) -> None:
        self._kernels = kernels
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._present_kernels()
        yield from self._lives()
        yield from self._traffic()
        yield from self._durations()

    def _server(self) -> Iterator[Metric]:
        started, last_activity = self._kernels.started, self._kernels.last_activity
        yield InfoMetricFamily(
            "jupyter_server", "The server's version.", value={"version": __version__}
        )
        for name, text, value in (
            ("started_timestamp_seconds", "When the server was started.", started),
            ("last_activity_timestamp_seconds", "When it was last used.", last_activity),
            ("active_duration_seconds", "From the one to the other.", last_activity - started),
        ):
            yield GaugeMetricFamily(f"jupyter_server_{name}", text, value=value)

    def _present_kernels(self) -> Iterator[Metric]:
        # A type that has no kernel any more has the value 0: its series must not just vanish.
        running: Counter[str] = Counter({kind: 0 for kind, _ in self._counters.starts})
        states: Counter[tuple[str, str]] = Counter()
        held = 0
        for kernel in self._kernels:
            kind, state, log = kernel.reports.kind, kernel.state, kernel.traffic.log
            running[kind] += state.lifecycle is not Lifecycle.DEAD
            # Kernels may report any word as their state; unknown ones share one series.
            states[kind, state.word if state.word in _STATES else "other"] += 1
            held += log.bytes
        yield _gauge(
            "kernel_currently_running_total",
            "Kernels that are not dead.",
            ["type"],
            [((kind,), count) for kind, count in running.items()],
        )
        yield _gauge(
            "kernelkeep_kernels", "Kernels that there are.", ["type", "state"], states.items()
        )
        starts = self._kernels.starts
        yield _gauge(
            "kernelkeep_starts",
            "Kernels that are starting, or wait for their turn to.",
            ["state"],
            [(("running",), starts.running), (("waiting",), starts.waiting)],
        )
        yield _gauge(
            "kernelkeep_warm_kernels",
            "Kernels that are ready for whoever asks for one.",
            ["type"],
            [((kind,), count) for kind, count in self._kernels.warm.parked.items()],
        )
        yield _gauge(
            "kernelkeep_connections",
            "Open channel WebSockets.",
            [],
            [((), self._kernels.connections)],
        )
        yield _gauge(
            "kernelkeep_log_bytes",
            "Bytes of messages in the logs on disk.",
            [],
            [((), held)],
        )

    def _lives(self) -> Iterator[Metric]:
        counters = self._counters
        labels = ["type", "reason"]
        yield _counter(
            "kernelkeep_kernel_starts",
            "Launches of kernels' processes.",
            labels,
            counters.starts.items(),
        )
        yield _counter(
            "kernelkeep_kernel_forks",
            "Kernels' processes that were forked instead of started.",
            [],
            [((), counters.forks)],
        )
        yield _counter(
            "kernelkeep_warm_claims",
            "Starts of kernelspecs with warm kernels: whether one could be given.",
            ["type", "result"],
            counters.warm_claims.items(),
        )
        yield _counter(
            "kernelkeep_kernel_deaths",
            "Kernels' processes that ended unasked, by exit or signal, or did not come up.",
            labels,
            counters.deaths.items(),
        )
        yield _counter(
            "kernelkeep_kernel_culls",
            "Kernels stopped because nobody used them.",
            labels,
            counters.culls.items(),
        )

        yield _counter(
            "kernelkeep_wrong_tokens",
            "Requests with a wrong token: refused, or slowed (429) since there were too many.",
            ["outcome"],
            [((outcome,), count) for outcome, count in counters.wrong_tokens.items()],
        )
        yield _counter(
            "kernelkeep_limit_refusals",
            "What was refused to an owner by a limit of its own.",
            ["limit"],
            [((limit,), count) for limit, count in counters.limit_refusals.items()],
        )
        yield _counter(
            "kernelkeep_audit_records_lost",
            "Records of the audit log that could not be written.",
            [],
            [((), counters.audit_lost)],
        )

    def _traffic(self) -> Iterator[Metric]:
        counters = self._counters
        channels = [
            *((("from_kernel", name), tally) for name, tally in counters.from_kernels.items()),
            *((("to_kernel", name), tally) for name, tally in counters.to_kernels.items()),
        ]
        yield from _tallies(
            "kernelkeep_{}",
            "{} over kernels' sockets.",
            ["direction", "channel"],
            channels,
        )
        yield from _tallies(
            "kernelkeep_held_back_{}",
            "{} of output that a rate limit kept from a client.",
            [],
            [((), counters.held_back)],
        )
        yield from _tallies(
            "kernelkeep_dropped_{}",
            "{} that had left the log before a client came to them.",
            [],
            [((), counters.outdated)],
        )
        yield _counter(
            "kernelkeep_malformed_messages",
            "Messages from kernels that were dropped: malformed or wrongly signed.",
            [],
            [((), counters.malformed)],
        )

    def _durations(self) -> Iterator[Metric]:
        counters = self._counters
        yield _histogram(
            "kernelkeep_kernel_start_seconds",
            "From the launch of a process until its kernel was ready.",
            ["type"],
            [((kind,), durations) for kind, durations in counters.start_seconds.items()],
        )
        yield _histogram(
            "kernelkeep_execution_seconds",
            "From busy to idle of execute requests on main shells.",
            [],
            [((), counters.execution_seconds)],
        )
        yield _histogram(
            "kernelkeep_event_loop_lag_seconds",
            "How late a timer was, once a second while metrics are asked for.",
            [],
            [((), counters.lag_seconds)],
        )
        yield _histogram(
            "http_request_duration_seconds",
            "Of HTTP requests until their response begins, without what they asked to wait, by the "
            "template of their route.",
            ["method", "handler", "status_code"],
            counters.request_seconds.items(),
        )


class _Owners(Collector):
    """What the present kernels of each owner use, by the last samples of them."""

    def __init__(self, kernels: MultiKernelManager) -> None:
        self._kernels = kernels

    def collect(self) -> Iterator[Metric]:
        figures: dict[str, Counter[str]] = {}
        for kernel in self._kernels:
            sums = figures.setdefault(kernel.ownership.owner, Counter())
            sums["kernels"] += kernel.state.lifecycle is not Lifecycle.DEAD
            series = self._kernels.usage.last(kernel.id)
            if series is None or series.latest is None:
                continue
            sums["memory"] += series.latest.memory or 0
            sums["processes"] += series.latest.processes or 0
            sums["cpu"] += series.cpu or 0  # type: ignore[assignment]
        for name, key, text in (
            ("kernels", "kernels", "Kernels of an owner that are not dead."),
            ("memory_bytes", "memory", "Memory of the processes of an owner's kernels."),
            ("processes", "processes", "Processes of an owner's kernels."),
            ("cpus", "cpu", "Processors that an owner's kernels kept busy when last sampled."),
        ):
            values = [((owner,), sums[key]) for owner, sums in figures.items()]
            yield _gauge(f"kernelkeep_owner_{name}", text, ["owner"], values)


T = TypeVar("T")
Labelled = Collection[tuple[Sequence[str], T]]
"""Values of one metric, each with the values of its labels."""


def _gauge(name: str, text: str, labels: list[str], values: Labelled[float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Labelled[float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _tallies(name: str, text: str, labels: list[str], tallies: Labelled[Tally]) -> Iterator[Metric]:
    for what in ("messages", "bytes"):
        values = [(key, getattr(tally, what)) for key, tally in tallies]
        yield _counter(name.format(what), text.format(what.capitalize()), labels, values)


def _histogram(name: str, text: str, labels: list[str], durations: Labelled[Durations]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, one in durations:
        buckets, count = [], 0
        bounds = [*(str(float(bound)) for bound in one.bounds), "+Inf"]
        for bound, number in zip(bounds, one.counts, strict=True):
            count += number
            buckets.append((bound, count))
        family.add_metric(key, buckets, one.total)
    return family

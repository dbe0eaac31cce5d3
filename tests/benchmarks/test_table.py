"""The benchmark's table: what is met, what is not, and what could not be measured."""

from __future__ import annotations

import pytest

from benchmarks.columns import BARE, BEFORE, FORWARDER, NO_FORK, OURS, SETTINGS, STOP, WARM
from benchmarks.figures import Results
from benchmarks.measures import MEASURES
from benchmarks.table import LINES, Line, markdown, number, verdict
from benchmarks.usage import Costs, Usage

PEER = "jupyter_server"


def line(key: str) -> Line:
    return next(line for line in LINES if line.key == key)


@pytest.mark.parametrize(
    ("key", "figures", "expected"),
    [
        ("iopub_v1_100", {OURS: 80_000.0, BARE: 80_000.0}, "met"),
        ("iopub_v1_100", {OURS: 80_000.0, BARE: 80_001.0}, "**not met**"),
        ("iopub_v1_100", {OURS: 80_000.0}, "?"),
        ("iopub_v1_100", {PEER: 80_000.0}, "?"),
        ("iopub_v1_10k", {OURS: 80.0, BARE: 100.0}, "met"),
        ("iopub_v1_10k", {OURS: 79.9, BARE: 100.0}, "**not met**"),
        ("iopub_v1_1M", {OURS: 600.0, BARE: 1000.0, PEER: 300.0}, "met"),
        ("iopub_v1_1M", {OURS: 599.0, BARE: 1000.0, PEER: 100.0}, "**not met**"),
        ("iopub_v1_1M", {OURS: 600.0, BARE: 1000.0, PEER: 100.0, "other": 301.0}, "**not met**"),
        ("iopub_v1_1M", {OURS: 600.0, BARE: 1000.0}, "?"),
        ("iopub_v1_50M", {OURS: 300.0, PEER: 250.0, STOP: 900.0, BEFORE: 900.0}, "met"),
        ("iopub_v1_100_cpu", {OURS: 0.5, BEFORE: 1.0}, "met"),
        ("iopub_v1_100_cpu", {OURS: 0.51, BEFORE: 1.0}, "**not met**"),
        ("iopub_v1_100_cpu", {OURS: 0.51}, "?"),
        ("iopub_v1_100_cpu_both", {OURS: 1.0, BEFORE: 1.0}, "met"),
        ("iopub_v1_100_cpu_keeper", {OURS: 1.0, BEFORE: 0.1}, ""),
        ("ten_clients", {OURS: 100.0, BEFORE: 101.0}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.7, BARE: 0.2, PEER: 28.0}, "met"),
        ("round_trip_v1_p50", {OURS: 0.7, BARE: 0.2, PEER: 27.9}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.8, BARE: 0.2}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.6}, "?"),
        ("chatter_cpu_both", {OURS: 13.0, FORWARDER: 10.0}, "met"),
        ("chatter_cpu_both", {OURS: 13.1, FORWARDER: 10.0}, "**not met**"),
        ("list_200", {OURS: 4000.0, PEER: 1000.0, "other": 900.0}, "met"),
        ("list_200", {OURS: 4000.0, PEER: 900.0, "other": 1001.0}, "**not met**"),
        ("list_200", {OURS: 4000.0, PEER: 900.0, FORWARDER: 3000.0}, "met"),
        ("lost_40000", {OURS: 0.0}, "met"),
        ("lost_40000", {OURS: 0.01}, "**not met**"),
        ("lost_max", {OURS: 20.0, BARE: 1.0, PEER: 90.0}, "met"),
        ("start_to_reply", {OURS: 100.0, WARM: 39.0, PEER: 400.0, NO_FORK: 500.0}, "met"),
        ("start_to_reply", {OURS: 101.0, WARM: 39.0, PEER: 400.0}, "**not met**"),
        ("start_to_reply", {OURS: 100.0, WARM: 41.0, PEER: 400.0}, "**not met**"),
        ("start_to_reply", {OURS: 100.0, PEER: 400.0}, "?"),
        ("four_thousand", {OURS: 4000.0}, "met"),
        ("four_thousand", {OURS: 3999.0}, "**not met**"),
        ("thousand_memory_both", {OURS: 100.0}, "met"),
        ("adoption", {OURS: 0.51}, "**not met**"),
        ("round_trip_v1_p99", {OURS: 1.0}, ""),
    ],
)
def test_a_target_is_met_or_not(key: str, figures: dict[str, float], expected: str) -> None:
    results = Results([OURS, BEFORE, BARE, FORWARDER, *SETTINGS, PEER, "other"])
    for server, value in figures.items():
        results.add(server, {key: value})

    assert verdict(line(key), results) == expected


def test_what_could_not_be_measured_is_said_in_its_place() -> None:
    results = Results([OURS, BARE, PEER])
    results.add(OURS, {"ten_clients": 300_000.0})
    results.fail(PEER, "ten clients", "the server died (Closed: reset)")
    results.fail(PEER, "installation", "not installed: no such package")

    text = markdown(results)

    (row,) = (row for row in text.splitlines() if "ten clients," in row and row.startswith("|"))
    assert row.split("|")[2:] == [" 300,000 ", " – ", " ! ", " ≥ before ", " ? ", ""]
    assert "- ten clients, jupyter_server: the server died (Closed: reset)" in text
    assert "- installation, jupyter_server: not installed: no such package" in text


def test_what_is_used_is_told_of_the_server_and_of_its_keeper() -> None:
    results = Results([OURS, BEFORE, PEER])
    ours = Costs(Usage(3.0, 0, 0), Usage(1.5, 0, 0)) - Costs(Usage(2.0, 0, 0), Usage(1.0, 0, 0))
    results.add(OURS, ours.cpu("iopub_v1_100_cpu", 2))
    results.add(BEFORE, Costs(Usage(4.0, 0, 0), Usage(0.5, 0, 0)).cpu("iopub_v1_100_cpu", 1))
    results.add(PEER, Costs(Usage(9.0, 0, 0)).cpu("iopub_v1_100_cpu", 1))

    rows = [row.split("|")[2:-1] for row in markdown(results).splitlines()[2:]]

    assert rows == [
        [" 2 ", " 4 ", " 9 ", " ≤ 0.5 × before ", " met "],
        [" 1 ", " 0.5 ", " – ", "  ", "  "],
        [" 3 ", " 4.5 ", " 9 ", " ≤ before ", " met "],
    ]


def test_a_measure_in_part_has_its_figure_and_its_reason() -> None:
    results = Results([OURS])
    results.add(OURS, {"four_thousand": 2500.0})
    results.fail(OURS, "four thousand kernels", "2,500 of 4,000 kernels answered: refused")

    text = markdown(results)

    assert "| 2,500 | 4,000 | **not met** |" in text
    assert "- four thousand kernels, kernelkeep: 2,500 of 4,000 kernels answered: refused" in text


def test_every_measure_has_lines_and_every_line_its_measure() -> None:
    assert {line.measure for line in LINES} == {measure.name for measure in MEASURES}


def test_every_line_has_its_own_key() -> None:
    keys = [line.key for line in LINES]

    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (123_456.7, "123,457")],
)
def test_figures_have_three_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected

"""The benchmark's table: what is met, what is not, and what could not be measured."""

from __future__ import annotations

import pytest

from benchmarks.figures import Results
from benchmarks.servers import FORWARDER
from benchmarks.starting import NOT_FORKED, WARM
from benchmarks.table import LINES, Line, markdown, number, verdict

OURS, BARE, PEER = "kernelkeep", "bare sockets", "jupyter_server"


def line(key: str) -> Line:
    return next(line for line in LINES if line.key == key)


@pytest.mark.parametrize(
    ("key", "figures", "expected"),
    [
        ("iopub_v1_100", {OURS: 80_000.0, BARE: 80_000.0}, "met"),
        ("iopub_v1_100", {OURS: 80_000.0, BARE: 80_001.0}, "**not met**"),
        ("iopub_v1_100", {OURS: 80_000.0}, "?"),
        ("iopub_v1_100", {OURS: 79_999.0}, "**not met**"),
        ("iopub_v1_100", {PEER: 80_000.0}, "?"),
        ("iopub_v1_1M", {OURS: 500.0, BARE: 499.0}, "met"),
        ("iopub_v1_1M", {OURS: 500.0, BARE: 501.0}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.6, BARE: 0.2, PEER: 30.0}, "met"),
        ("round_trip_v1_p50", {OURS: 0.6, BARE: 0.2, PEER: 29.9}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.7, BARE: 0.2}, "**not met**"),
        ("round_trip_v1_p50", {OURS: 0.6}, "?"),
        ("list_200", {OURS: 4000.0, PEER: 1000.0, "other": 900.0}, "met"),
        ("list_200", {OURS: 4000.0, PEER: 900.0, "other": 1001.0}, "**not met**"),
        ("list_200", {OURS: 4000.0, PEER: 900.0, FORWARDER: 3000.0}, "met"),
        ("lost_40000", {OURS: 0.0}, "met"),
        ("lost_40000", {OURS: 0.01}, "**not met**"),
        ("lost_max", {OURS: 20.0, BARE: 1.0, PEER: 90.0}, "met"),
        ("start_to_reply", {OURS: 100.0, PEER: 401.0, NOT_FORKED: 400.0, WARM: 39.0}, "met"),
        ("start_to_reply", {OURS: 100.0, PEER: 401.0, WARM: 41.0}, "**not met**"),
        ("start_to_reply", {OURS: 100.0, PEER: 399.0, WARM: 39.0}, "**not met**"),
        ("start_to_reply", {OURS: 100.0, PEER: 401.0}, "?"),
        ("round_trip_v1_p99", {OURS: 1.0}, ""),
    ],
)
def test_a_target_is_met_or_not(key: str, figures: dict[str, float], expected: str) -> None:
    results = Results([OURS, BARE, FORWARDER, NOT_FORKED, WARM, PEER, "other"])
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
    assert row.split("|")[2:] == [" 300,000 ", " – ", " ! ", " ≥ 250,000 ", " met ", ""]
    assert "- ten clients, jupyter_server: the server died (Closed: reset)" in text
    assert "- installation, jupyter_server: not installed: no such package" in text


def test_every_line_has_its_own_key() -> None:
    keys = [line.key for line in LINES]

    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (123_456.7, "123,457")],
)
def test_figures_have_three_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected

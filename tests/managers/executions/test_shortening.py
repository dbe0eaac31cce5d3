"""Outputs in fewer bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.executions.shortening import LEAST_ERROR, shortened_data, shortened_error, size_of

TEXT = st.text(max_size=400)


def error(evalue: str, traceback: list[str], ename: str = "E") -> dict[str, Any]:
    return {"output_type": "error", "ename": ename, "evalue": evalue, "traceback": traceback}


def shown(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}


def url(mime: str) -> str:
    return f"/outputs/0?mime={mime}"


@given(TEXT, TEXT, st.lists(TEXT, max_size=20), st.integers(-10, 5000))
def test_an_error_is_within_its_bound_and_tells_its_ends(
    ename: str, evalue: str, traceback: list[str], room: int
) -> None:
    whole = error(evalue, traceback, ename)
    short = shortened_error(whole, room)
    bound = max(room, LEAST_ERROR)
    assert size_of(short) <= bound
    if size_of(whole) <= bound:
        assert short == whole
    assert ename.startswith(short["ename"].removesuffix("…"))
    assert evalue.startswith(short["evalue"].removesuffix("…"))
    lines = short["traceback"]
    for line, original in zip(reversed(lines), reversed(traceback), strict=False):
        assert original.endswith(line.removeprefix("…"))


def test_what_a_short_value_leaves_is_the_tracebacks_and_the_other_way_round() -> None:
    short = shortened_error(error("why", ["x" * 5000]), 1000)
    assert size_of(short) == 1000
    assert short["evalue"] == "why"
    short = shortened_error(error("y" * 5000, ["at line 1"]), 1000)
    assert size_of(short) == 1000
    assert short["traceback"] == ["at line 1"]


@pytest.mark.parametrize("text", ["r" * 5000, "\x1b[31m€\n" * 1000, ["line\n"] * 1000])
def test_of_plain_text_both_ends_stay(text: Any) -> None:
    short = shortened_data(shown({"text/plain": text}), 1000, url)
    assert 980 <= size_of(short) <= 1000
    whole = "".join(text)
    first, last = short["data"]["text/plain"].split("…")
    assert whole.startswith(first)
    assert whole.endswith(last)
    assert short["metadata"]["kernelkeep"]["shortened"] == {"text/plain": len(whole.encode())}
    again = shortened_data(short, 500, url)
    assert size_of(again) <= 500
    assert again["metadata"] == short["metadata"]


def test_what_is_large_goes_by_reference_and_what_fits_stays() -> None:
    data = {"text/plain": "Axes", "text/html": "<b>x</b>", "image/png": "A" * 5000}
    short = shortened_data(shown(data), 400, url)
    assert short["data"] == {**data, "image/png": url("image/png")}
    assert short["metadata"]["kernelkeep"]["references"] == {"image/png": 5000}


@pytest.mark.parametrize(
    "metadata",
    [{"a": "x" * 5000}, {"kernelkeep": "x" * 5000}, {"kernelkeep": {"references": "odd"}}],
)
def test_metadata_of_any_kind_does_not_keep_it_from_being_shortened(
    metadata: dict[str, Any],
) -> None:
    short = shortened_data(shown({"text/plain": "r" * 5000}, metadata), 1000, url)
    assert size_of(short) <= 1000


@given(
    st.dictionaries(st.sampled_from(["text/plain", "text/html", "image/png", "a/b"]), TEXT),
    st.integers(200, 2000),
)
def test_data_is_within_its_bound_or_gives_all_it_can(data: dict[str, Any], room: int) -> None:
    short = shortened_data(shown(data), room, url)
    assert size_of(short) <= max(room, 450)
    assert list(short["data"]) == list(data)


def test_very_many_media_types_take_no_more_than_their_share() -> None:
    data = {f"a/{number}": "v" * 20 for number in range(30_000)}
    short = shortened_data(shown(data), 300, url)
    assert list(short["data"]) == list(data)

"""How limits are written, and what is refused with a line that names it."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from app.limit_options import LIMITS, limit_table
from app.settings import Settings, explain
from tests.support.option_files import WriteOptions, flags, refusal


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("kernels=10,websockets=20", {"kernels": 10, "websockets": 20}),
        (" kernels = 10 , memory = 4GiB ", {"kernels": 10, "memory": 4 * 2**30}),
        ('{"kernels": 10, "cpu": 0.5}', {"kernels": 10, "cpu": 0.5}),
        ({"memory": "1.5GiB"}, {"memory": 3 * 2**29}),
        ({"memory": "500MB"}, {"memory": 500_000_000}),
        ({"memory": "500 M"}, {"memory": 500_000_000}),
        ({"memory": 2**20}, {"memory": 2**20}),
        ({"log_bytes": "64kiB"}, {"log_bytes": 2**16}),
        ({"log_bytes": "64KiB"}, {"log_bytes": 2**16}),
        ({"idle_timeout": "12h", "lifetime": 90}, {"idle_timeout": 43200.0, "lifetime": 90.0}),
        ({"idle_timeout": "0.5"}, {"idle_timeout": 0.5}),
        ({"kernels": "none", "websockets": None}, {"kernels": None, "websockets": None}),
        ({"kernels": 0}, {"kernels": 0}),
        ("", {}),
    ],
)
def test_limits_are_numbers_sizes_spans_or_none(
    written: object, read: dict[str, float | None]
) -> None:
    assert limit_table(written) == read


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("kernels", "kernels: not a number"),
        ("kernels=", "kernels: not a number"),
        ("kernels=-1", "kernels: not a number"),
        ("kernels=1.5", "kernels: not a whole number from 0"),
        ("kernels=1e3", "kernels: not a number"),
        ("kernels=٣", "kernels: not a number"),
        ({"kernels": True}, "kernels: not a number"),
        ({"kernels": [1]}, "kernels: not a number"),
        ({"kernels": 2**60}, "kernels: not a whole number from 0"),
        ({"kernels": float("inf")}, "kernels: not a whole number from 0"),
        ('{"cpu": NaN}', "cpu: not a number above 0"),
        ("cpu=0", "cpu: not a number above 0"),
        ("memory=4GX", "memory: not a size"),
        ("memory=1k", "memory: not a whole number of bytes from 1048576"),
        ("memory=9999999TiB", "memory: not a whole number of bytes"),
        ("lifetime=3fortnights", "lifetime: a span of time is"),
        ("lifetime=0", "lifetime: not a number above 0"),
        ("kernel=1", "kernel: no limit; there are kernels, "),
        ("kernels=1,kernels=2", "kernels: given twice"),
        ('{"kernels": 1, "kernels": 1}', "kernels: given twice"),
        ('{"kernels": 1', "not a JSON object"),
        ("[1]", "[1]"),
        (3, "not limits with a value each"),
        ("a\nb=1", r"'a\nb': no limit"),
    ],
)
def test_what_is_wrong_is_named(written: object, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as raised:
        limit_table(written)
    assert "\n" not in str(raised.value)


def test_every_limit_can_be_lifted() -> None:
    assert limit_table(dict.fromkeys(LIMITS, "none")) == dict.fromkeys(LIMITS)


def test_all_sources_have_them(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_options(
        '[limits]\nowner_limits = {kernels = 1, lifetime = "2d"}\n'
        '[limits.group_limits.staff]\nkernels = "none"\n'
        '[limits.limits_by_name."anna@example.org"]\nmemory = "2GiB"\n'
    )
    found = Settings()
    assert found.owner_limits == {"kernels": 1, "lifetime": 172800.0}
    assert found.group_limits == {"staff": {"kernels": None}}
    assert found.limits_by_name == {"anna@example.org": {"memory": 2**31}}
    monkeypatch.setenv("KERNELKEEP_OWNER_LIMITS", "kernels=2,websockets=3")
    monkeypatch.setenv("KERNELKEEP_LIMITS_BY_NAME", '{"ben": {"kernels": 4}}')
    found = flags("--group-limits", '{"a": {"kernels": 3}}')
    assert found.owner_limits == {"kernels": 2, "websockets": 3}
    assert found.group_limits == {"a": {"kernels": 3}}
    assert found.limits_by_name == {"ben": {"kernels": 4}}
    assert flags("--owner-limits", "kernels=5,memory=1GiB").owner_limits == {
        "kernels": 5,
        "memory": 2**30,
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("owner_limits = {kernels = 1, kernels = 2}", "kernels"),
        ("[limits]\n[limits.owner_limits]\nkernels = 1\nkernels = 2", "kernels"),
        ("[limits.group_limits.a]\nkernels = -1", "a: kernels: not a whole number"),
        ("[limits.group_limits]\na = 3", "a: not limits with a value each"),
        ('limits_by_name = "anna"', "not a JSON object of limits by name"),
        ("[limits.limits_by_name.anna]\nquota = 1", "anna: quota: no limit"),
    ],
)
def test_one_line_of_a_file_s_fault_names_it(
    write_options: WriteOptions, text: str, named: str
) -> None:
    write_options(text)
    told = refusal()
    assert named in told
    assert "\n" not in told.strip()


def test_the_same_limit_twice_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELKEEP_OWNER_LIMITS", "kernels=2,kernels=3")
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert explain(raised.value) == "--owner-limits: kernels: given twice"

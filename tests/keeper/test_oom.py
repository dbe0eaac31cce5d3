"""Processes that were ended for want of memory: counted by the system, where it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.keeper.oom import OOMWatch, parse_count

EVENTS = "low 0\nhigh 0\nmax 41\noom 3\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V1 = "9:name=systemd:/\n5:devices:/\n4:memory:/some/group\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (EVENTS.format(3), 3),
        (CONTROL.format(0), 0),
        ("oom_kill_disable 0\nunder_oom 0\n", None),
        ("oom_kill many\n", None),
        ("", None),
    ],
)
def test_the_count_is_read_in_both_versions(text: str, count: int | None) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        ("0::/some/group\n", "some/group/memory.events", EVENTS),
        ("0::/\n", "memory.events", EVENTS),
        ("0::/hidden/by/the/container\n", "memory.events", EVENTS),
        (V1, "memory/some/group/memory.oom_control", CONTROL),
        (V1 + "0::/\n", "memory/memory.oom_control", CONTROL),
    ],
)
def test_only_what_happens_meanwhile_counts(
    tmp_path: Path, groups: str, file: str, text: str
) -> None:
    write(tmp_path / "proc" / "7" / "cgroup", groups)
    counted = tmp_path / "sys" / "fs" / "cgroup" / file
    write(counted, text.format(2))
    watch = OOMWatch(7, tmp_path)
    assert not watch.struck

    write(counted, text.format(3))
    assert watch.struck
    assert not OOMWatch(7, tmp_path).struck
    counted.unlink()
    assert not watch.struck


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize("groups", [None, "", "0::/\n", V1, "no such form"])
def test_where_nobody_counts_nothing_is_claimed(tmp_path: Path, groups: str | None) -> None:
    if groups is not None:
        write(tmp_path / "proc" / "7" / "cgroup", groups)

    assert not OOMWatch(7, tmp_path).struck
    assert not OOMWatch(None).struck

"""Which of several hosts gets a kernel."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from app.managers.errors import KeeperUnavailable
from app.managers.processes.hosts import host_choice
from app.managers.processes.hosts.errors import HostKeyRefused, HostUnreachable, HostUnusable
from app.managers.processes.hosts.host_choice import HostChoice, in_turn, no_host
from app.managers.processes.hosts.options import SSHOptions
from app.managers.processes.hosts.service import OwnService
from app.managers.processes.keeper.remote import RemotePlace
from app.managers.processes.keeper.remote_keepers import RemoteKeepers

Load = float | KeeperUnavailable | None


class Hosts:
    """Keepers on hosts whose loads are told; None is for one that does not answer."""

    def __init__(self, **loads: Load) -> None:
        self.loads = loads
        self.kernels: Counter[str] = Counter()
        self.looked: list[str] = []
        self.left: list[str] = []
        self.options = SSHOptions(host=[*loads])
        self.is_looked_at: Callable[[str], bool] = lambda _: False
        self.choice = HostChoice(cast(RemoteKeepers, self), OwnService(Path("/nowhere")))

    async def choose(self) -> str:
        return await asyncio.wait_for(self.choice.choose(self.options), 10)

    def count(self, key: str) -> int:
        return self.kernels[self._name(key)]

    async def look_at(
        self, key: str, place: Callable[[], RemotePlace], *, with_load: bool
    ) -> float:
        name = self._name(key)
        assert place().name == name
        self.looked.append(name)
        assert self.is_looked_at(key)
        await asyncio.sleep(0)
        load = self.loads[name]
        if load is None:
            await asyncio.Event().wait()
        if isinstance(load, KeeperUnavailable):
            raise load
        assert load is not None
        return load if with_load else 0.0

    def leave_unused(self, key: str) -> None:
        assert not self.is_looked_at(key)
        self.left.append(self._name(key))

    @staticmethod
    def _name(key: str) -> str:
        return SSHOptions.of_key(key).hosts[0]


async def test_the_one_with_the_fewest_kernels_comes_before_the_one_with_the_least_load() -> None:
    hosts = Hosts(a=0.1, b=9.0, c=0.5)
    hosts.kernels.update(a=1)
    assert await hosts.choose() == "c"
    hosts.kernels.update(c=1)
    hosts.looked.clear()
    assert await hosts.choose() == "b"
    assert hosts.looked == ["b"]
    hosts.kernels.update(b=1)
    assert await hosts.choose() == "a"
    await asyncio.sleep(0)
    assert {*hosts.left} == {"a", "b", "c"}


async def test_starts_that_come_together_are_spread() -> None:
    hosts = Hosts(a=0.0, b=5.0)

    async def start() -> None:
        found = await hosts.choice.choose(hosts.options)
        hosts.kernels[found] += 1  # before anything else is awaited

    await asyncio.gather(*(start() for _ in range(6)))
    assert hosts.kernels == {"a": 3, "b": 3}


async def test_one_that_cannot_be_used_is_passed_over_and_the_last_for_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(a=HostUnreachable("a is away"), b=7.0)
    hosts.kernels.update(b=5)
    assert await hosts.choose() == "b"
    assert await hosts.choose() == "b"
    assert hosts.looked == ["a", "b", "b"]
    assert caplog.text.count("a is passed over: a is away") == 1
    hosts.loads.update(a=1.0, b=HostUnreachable("b is away"))
    assert await hosts.choose() == "a"  # all others have failed
    assert await hosts.choose() == "a"
    monkeypatch.setattr(host_choice, "AWAY_SECONDS", 0.0)
    hosts.looked.clear()
    hosts.kernels.clear()
    hosts.loads.update(b=0.5)
    assert await hosts.choose() == "b"
    assert {*hosts.looked} == {"a", "b"}


async def test_one_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_choice, "GRACE_SECONDS", 0.05)
    hosts = Hosts(a=None, b=7.0, c=None)
    assert await hosts.choose() == "b"
    assert {*hosts.looked} == {"a", "b", "c"}
    # They are the last for a while, although they have no kernels.
    hosts.kernels.update(b=3)
    hosts.looked.clear()
    assert await hosts.choose() == "b"
    assert hosts.looked == ["b"]


async def test_that_none_can_be_used_is_told_with_the_reasons_of_all() -> None:
    hosts = Hosts(a=HostUnreachable("away"), b=HostUnreachable("gone"))
    with pytest.raises(HostUnreachable) as raised:
        await hosts.choose()
    assert raised.value.message == "None of the hosts can be used: a: away; b: gone"
    hosts.loads.update(b=HostKeyRefused("another key"))
    hosts.kernels.update(b=1)
    with pytest.raises(HostUnusable, match="a: away; b: another key") as other:
        await hosts.choose()
    assert other.value.code == "host_unusable"


async def test_keepers_are_left_when_nobody_looks_at_them_any_more() -> None:
    hosts = Hosts(a=None, b=None)
    slow = [asyncio.ensure_future(hosts.choose()) for _ in range(2)]
    await asyncio.sleep(0.01)
    slow[0].cancel()
    await asyncio.wait(slow[:1])
    await asyncio.sleep(0)
    assert hosts.left == []
    slow[1].cancel()
    await asyncio.wait(slow)
    await asyncio.sleep(0)
    assert sorted(hosts.left) == ["a", "b"]


async def test_one_host_is_no_choice() -> None:
    hosts = Hosts(a=HostUnreachable("away"))
    assert await hosts.choose() == "a"
    assert hosts.looked == []


def test_turns() -> None:
    counts = {"a": 1, "b": 0, "c": 0, "d": 1}
    assert in_turn(counts, set()) == [["b", "c"], ["a", "d"]]
    assert in_turn(counts, {"b", "a"}) == [["c"], ["d"], ["b"], ["a"]]


def test_an_error_in_common_stays_that_error() -> None:
    assert type(no_host({"a": HostKeyRefused("x")})) is HostKeyRefused
    assert type(no_host({"a": HostKeyRefused("x"), "b": HostUnusable("y")})) is HostUnusable

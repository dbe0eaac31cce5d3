"""Doorbells that lie: the server neither falls nor spins, and shows nothing that is not so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from app.managers.processes.keeper import connection
from app.protocol.link import Bell, pack_bells, unpack_bells
from tests.keeper.conftest import WAIT, Client, Open, Speak
from tests.support.home import Home
from tests.support.keeper_relay import Relay
from tests.support.processes import eventually

Lie = Callable[[Bell], bytes]


def changed(**fields: Callable[[Bell], Any]) -> Lie:
    """A doorbell of which some fields are made of what they were."""

    def change(bell: Bell) -> bytes:
        new: dict[str, Any] = {name: make(bell) for name, make in fields.items()}
        return pack_bells([bell._replace(**new)])

    return change


BEYOND = changed(end=lambda bell: (bell.end[0] + 1000, bell.end[1] + 10**6))

LIES: dict[str, Lie] = {
    "end beyond the file": BEYOND,
    "end far beyond": changed(end=lambda bell: (2**64 - 1, 2**64 - 1)),
    "end goes back": changed(end=lambda bell: (1, 0)),
    "offset beyond": changed(end=lambda bell: (bell.end[0], bell.end[1] + 10**6)),
    "offset goes back": changed(end=lambda bell: (bell.end[0], 0)),
    "first behind the end": changed(first=lambda bell: (bell.end[0] + 5, bell.end[1])),
    "first is the end": changed(first=lambda bell: bell.end),
    "first is zero": changed(first=lambda bell: (0, 0)),
    "tip of another file": changed(tip=lambda bell: (bell.end[0] + 7, 64)),
    "tip beyond": changed(tip=lambda bell: (2**64 - 1, 2**64 - 1)),
    "all was taken": changed(taken=lambda bell: 2**64 - 1),
    "none was taken": changed(taken=lambda bell: 0),
    "unknown handle": changed(handle=lambda bell: 999),
    "many unknown handles": lambda bell: pack_bells(
        bell._replace(handle=1000 + number) for number in range(2000)
    ),
    "half a bell": lambda bell: pack_bells([bell])[:-3],
    "text": lambda bell: b"Hello, this is no doorbell at all",
    "nothing": lambda bell: b"",
}


class Liar:
    """What tells the server how far logs go: the truth, unless there is a lie."""

    def __init__(self) -> None:
        self.lie: Lie | None = None
        self.told = 0

    def __call__(self, data: bytes) -> bytes:
        if self.lie is None:
            return data
        self.told += 1
        return self.lie(unpack_bells(data)[0])


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_lie_costs_a_gap_at_most_and_the_kernel_goes_on(
    home: Home,
    open_keeper: Open,
    speak: Speak,
    lie: Lie,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connection, "SOON_SECONDS", 0.1)
    liar = Liar()
    first = await open_keeper()  # there is a keeper to stand before
    async with Relay(home.state_dir, bells=liar):
        keeper = await open_keeper()
        assert keeper.pid == first.pid
        client = await speak(keeper)
        truths: list[str] = []
        for number in range(3):
            liar.lie, liar.told = lie, 0
            client.run(f"print lied-{number}")
            await eventually(lambda: liar.told, WAIT)
            liar.lie = None
            truths.append(await goes_on(client, number))
        numbers = [entry.seq for entry in client.look()]
        assert numbers == sorted({*numbers})
        shown = [client.text(f"{truth}\\n") for truth in truths]
        assert shown == [1, 1, 1]
        lied = [client.text(f"lied-{number}\\n") for number in range(3)]
        assert lied == [1, 1, 1] or (client.gaps and max(lied) <= 1)
        await keeper.close()
    told = [record for record in caplog.records if record.name.startswith("app.")]
    assert not [record for record in told if record.exc_info]
    assert len(told) <= 12


async def goes_on(client: Client, number: int) -> str:
    """Run code to its end; returns what it prints.

    What the kernel says while the server still believes the lie can be lost with it. So the code
    that is run first may not be seen to end, and what is run when the lie has come out is.
    """
    for attempt in ("at once", "later"):
        text = f"true-{number} {attempt}"
        request = client.run(f"print {text}")
        try:
            await eventually(partial(client.has_ended, request), WAIT)
        except AssertionError:
            continue
        return text
    raise AssertionError("the kernel does not go on")


async def test_one_that_lies_on_and_on_is_not_asked_without_a_pause(
    home: Home, open_keeper: Open, speak: Speak
) -> None:
    liar = Liar()
    await open_keeper()
    async with Relay(home.state_dir, bells=liar) as relay:
        keeper = await open_keeper()
        client = await speak(keeper)
        before = relay.connections
        liar.lie = LIES["text"]
        loop = asyncio.get_running_loop()
        client.run("flood 3000 100 1000")
        began = loop.time()
        await asyncio.sleep(2.5)
        assert relay.connections - before <= 4 * (loop.time() - began)
        liar.lie = None
        await client.ran("print on")
        assert client.text("on\\n") == 1
        assert client.text("3000 ") == 1
        assert not client.gaps
        await keeper.close()

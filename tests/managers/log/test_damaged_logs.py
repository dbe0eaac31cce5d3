"""Files of kernels' logs that somebody damages, while a server reads them and across its end."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.support.channels import JupyterChannels
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.processes import eventually
from tests.support.rest import RestClient

COUNT = 250
"""Messages of a kilobyte: they are in files of 32, 128 and 512 KiB."""

WAIT = 60  # seconds


def files(log: Path) -> list[Path]:
    return sorted(log.glob("*.log"))


def at(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def on(which: int, damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Damage to one of a log's files."""
    return lambda log: damage(files(log)[which])


def flip(path: Path, begin: int, end: int) -> None:
    data = bytearray(path.read_bytes())
    data[begin:end] = bytes(byte ^ 0xFF for byte in data[begin:end])
    path.write_bytes(data)


WHICH = {"first": 0, "middle": 1, "last": -1}

OF_ONE_FILE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: os.truncate(path, 20_000),
    "cut in its head": lambda path: os.truncate(path, 20),
    "removed": Path.unlink,
    "newer version": lambda path: at(path, 5, b"002"),
    "head flipped": lambda path: flip(path, 0, 64),
    "records flipped": lambda path: flip(path, 5000, 9000),
}

DAMAGE: dict[str, Callable[[Path], object]] = {
    f"{name}, {place}": on(which, damage)
    for name, damage in OF_ONE_FILE.items()
    for place, which in WHICH.items()
}
DAMAGE["all is gone"] = shutil.rmtree
DAMAGE["all is text"] = lambda log: [file.write_bytes(b"[]" * 9999) for file in files(log)]

FROM_ANOTHER = {f"of another kernel, {place}": which for place, which in WHICH.items()}


@dataclass
class Damaged:
    """A kernel, and what is known of its log."""

    kernel_id: str
    rest: RestClient
    seen: dict[int, str] = field(default_factory=dict)

    @property
    def executions(self) -> Executions:
        return Executions(self.rest, self.kernel_id)

    async def pages(self, after: int = 0) -> list[Any]:
        """All of the log, in pages."""
        path = f"/api/kernels/{self.kernel_id}/messages"
        pages = []
        while True:
            query = {"after": after, "limit": 1000}
            page = (await self.rest.request("GET", path, params=query)).json()
            pages.append(page)
            if page["next"] >= page["last"]:
                return pages
            assert page["next"] > after, "it does not go on"
            after = page["next"]

    async def look(self) -> set[int]:
        """Every number is there as it was, or in a gap; returns those that are there."""
        found: dict[int, str] = {}
        lost = 0
        pages = await self.pages()
        for page in pages:
            if page["gap"] is not None:
                lost += page["gap"]["messages"]
            for message in page["messages"]:
                assert message["seq"] > max(found, default=0)
                found[message["seq"]] = str(message["content"])
        assert len(found) + lost == pages[-1]["last"]
        for number, content in self.seen.items():
            assert found.get(number, content) == content, (self.kernel_id, number, pages[0]["gap"])
        return {*found}

    async def remember(self) -> None:
        for page in await self.pages():
            self.seen |= {m["seq"]: str(m["content"]) for m in page["messages"]}

    async def works(self, name: str = "") -> None:
        """Code runs, and its output is shown."""
        done = await self.executions.run("print on")
        said = [output.get("text") for output in done["outputs"]]
        assert (done["state"], said[-1:]) == ("ok", ["on\n"]), (name, done)

    async def goes_on(self, *, sound: bool) -> None:
        """An execution ends, one way or the other: what the kernel says of it may be lost."""
        done = await self.executions.run("print on")
        is_lost = done["state"] == "lost" and "log is lost" in done["reason"]
        assert done["state"] == "ok" or (is_lost and not sound), done


async def told_of_a_gap(url: str, token: str, kernel_id: str) -> bool:
    """A client that wants all is told what is lost, or all is there."""
    async with await JupyterChannels.connect(url, kernel_id, token, query={"after": "0"}) as client:
        done = await client.execute("print behind")
        assert done.text == "behind\n"
        texts = [m.content["text"] for m in client.log if m.content.get("name") == "stderr"]
        assert all("no longer kept" in text or "nobody has heard" in text for text in texts)
        return bool(texts)


def damage(home: Home, kernels: dict[str, Damaged]) -> None:
    logs = home.state_dir / "logs" / "kept"
    for name, kernel in kernels.items():
        log = logs / kernel.kernel_id
        if name in DAMAGE:
            DAMAGE[name](log)
        elif name in FROM_ANOTHER:
            path = files(log)[FROM_ANOTHER[name]]
            shutil.copyfile(files(logs / kernels["sound"].kernel_id)[0], path)


async def started(rest: RestClient, names: list[str]) -> dict[str, Damaged]:
    async def one() -> Damaged:
        kernel = Damaged((await rest.start_kernel("fake"))["id"], rest)
        await kernel.executions.run(f"flood {COUNT} 1000")
        await kernel.remember()
        return kernel

    kernels = {}
    for name in names:  # one after the other is faster than all at once
        kernels[name] = await one()
    return kernels


def lines(output: str) -> Iterator[str]:
    return (line for line in output.splitlines() if "a part of a kernel's log is lost" in line)


async def check(kernels: dict[str, Damaged]) -> None:
    """All go on; nothing that is shown is wrong; the sound one has lost nothing."""
    for name, kernel in kernels.items():
        await kernel.look()  # from the first file on, so that no other is open
        await kernel.goes_on(sound=name == "sound")
        before = await kernel.look()
        if name == "sound":
            assert {*kernel.seen} <= before
        else:
            assert not {*kernel.seen} <= before, name
        # What comes behind the damage is kept.
        await kernel.works(name)
        await kernel.works(name)
        after = await kernel.look()
        assert before <= after, name
        assert len(after - before) >= 10, name


NAMES = {
    "while it reads": ["sound", *DAMAGE, *FROM_ANOTHER],
    "server killed": ["sound", *(name for name in DAMAGE if "middle" not in name), *FROM_ANOTHER],
    "keeper killed as well": [
        "sound",
        *(name for name in DAMAGE if "last" in name or "all" in name),
    ],
}


FEW = {
    **NAMES,
    "server killed": [
        *("sound", "all is gone", "all is text", "of another kernel, first"),
        *(f"{name}, {place}" for name, place in zip(OF_ONE_FILE, cycle(("first", "last")))),
    ],
}
"""What CI is content with: while the server reads, it has shown each damage at each place."""


@pytest.mark.parametrize("how", NAMES)
async def test_damage_is_a_gap_and_harms_no_other_kernel(
    servers: Servers, home: Home, how: str, full: bool
) -> None:
    names = (NAMES if full else FEW)[how]
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernels = await started(rest, names)
        if how == "while it reads":
            damage(home, kernels)
            await check(kernels)
            assert len(list(lines(server.output()))) <= len(kernels), "one line for each at most"
        # Numbers that some client has come to are not given to other messages.
        clients = [
            await JupyterChannels.connect(server.ws_url, one.kernel_id, server.token)
            for one in kernels.values()
        ]
        await asyncio.gather(
            *(client.recv() for client in clients)
        )  # they are greeted, and so known
    if how != "while it reads":
        servers.crash()
        if how == "keeper killed as well":
            servers.kill_keeper()
        damage(home, kernels)
        server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        for kernel in kernels.values():
            kernel.rest = rest
        if how != "while it reads":
            assert len(await rest.kernels()) == len(kernels)
            for kernel in kernels.values():
                await rest.wait_for_state(kernel.kernel_id, "idle", timeout=WAIT)
            await check(kernels)
        for name, kernel in kernels.items():
            told = await told_of_a_gap(server.ws_url, server.token, kernel.kernel_id)
            # What a keeper could not hear while there was none is a gap for the sound one, too.
            assert told == (name != "sound" or how == "keeper killed as well"), name
        await asyncio.gather(*(client.close() for client in clients))
        await asyncio.gather(*(rest.delete(kernel.kernel_id) for kernel in kernels.values()))
    assert "Traceback" not in server.output()
    logs = home.state_dir / "logs" / "kept"
    await eventually(lambda: not [*logs.iterdir()], WAIT)
    await asyncio.to_thread(server.stop)
    assert "Traceback" not in (home.state_dir / "keeper" / "log").read_text()

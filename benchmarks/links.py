"""``python -m benchmarks.links``: what the link to a keeper that dials in costs.

The service's side is this process, without HTTP; keepers and kernels are real, and reached over TLS
on loopback. The keepers of the thousand links are one other process that speaks for all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import psutil
import uvloop
from jupyter_client.connect import write_connection_file

from app.keeper.protocol import PROTOCOL, pack, receive
from app.managers.messages.traffic import Traffic
from app.managers.processes.keeper.client import Keeper
from app.protocol.compose import make_parts
from app.protocol.messages import ClientMessage
from benchmarks.thousands import raise_descriptors
from tests.keeper.conftest import Client, Ear, connected
from tests.kernels.driver import free_ports
from tests.support.home import Home
from tests.support.joined import LOGS, JoinedService, connect, speak, start_keeper
from tests.support.kernelspecs import FAKE_KERNEL

ROUNDS: Final = 2000
MESSAGE_BYTES: Final = 50_000
FLOOD_MESSAGES: Final = 6000
SETTLE_SECONDS: Final = 3.0
IDLE_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 120.0


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser("python -m benchmarks.links", description=__doc__)
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--only", choices=("trips", "bytes", "links"))
    parser.add_argument("--speak-for-all", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_descriptors()
    if options.speak_for_all:
        uvloop.run(_speak_for_all())
        return 0
    measures: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "trips": _trips,
        "bytes": _bytes,
        "links": lambda: _links(options.links),
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            uvloop.run(measure())
    return 0


# Round trips


async def _trip(traffic: Traffic, client: Client) -> float:
    """Seconds until the reply to a tiny execution."""
    began = time.perf_counter()
    header, parts = make_parts("execute_request", {"code": "print x"}, "client")
    traffic.submit(ClientMessage("shell", header, parts), "client")
    while True:
        while client.reader.behind:
            _, entries = client.reader.take()
            for entry in entries:
                message = entry.message
                if message.channel == "shell" and message.parent.msg_id == header.msg_id:
                    return time.perf_counter() - began
        await client.reader.wait()


async def _here(home: Home) -> tuple[Keeper, Traffic]:
    """A local keeper, and a kernel of it."""
    keeper = await connected(home.state_dir, orphan_timeout=None, output_bytes=10_000, **LOGS)
    ports: dict[str, Any] = free_ports()
    file, info = write_connection_file(
        str(home.path / "here.json"), ip="127.0.0.1", key=b"secret", **ports
    )
    await keeper.launch(
        "here",
        [sys.executable, str(FAKE_KERNEL), "-f", file],
        env=home.environment(),
        cwd=str(home.root_dir),
        output=home.path / "here.log",
    )
    return keeper, await connect(keeper, home, "here", info)


async def _trips() -> None:
    home = Home()
    async with JoinedService(home.path / "service") as service:
        invitation = await service.joining.invite("far")
        process = start_keeper(
            invitation.document, env=home.environment(), stderr=subprocess.DEVNULL
        )
        far_keeper = service.keeper("far", lasts=False)
        far = await speak(far_keeper, home, "far")
        near_keeper, near = await _here(home)
        kernels = {"near": (near, Client(near)), "far": (far, Client(far))}
        took: dict[str, list[float]] = {"near": [], "far": []}
        for number in range(2 * ROUNDS):
            name = ("near", "far")[number % 2]
            took[name].append(await _trip(*kernels[name]))
        for name, seconds in took.items():
            middle = statistics.median(seconds) * 1000
            low = statistics.quantiles(seconds, n=10)[0] * 1000
            print(f"round trip, {name}: {middle:.3f} ms (median), {low:.3f} ms (lowest decile)")
        more = statistics.median(took["far"]) - statistics.median(took["near"])
        print(f"more by the link: {more * 1000:.3f} ms (at most 0.7 is meant)")
        for traffic in (near, far):
            await traffic.close("")
        await near_keeper.close()
    process.wait(30)
    home.remove()


# Bytes


async def _bytes() -> None:
    home = Home()
    service = JoinedService(home.path / "service")
    invitation = await service.joining.invite("far")
    process = start_keeper(invitation.document, env=home.environment(), stderr=subprocess.DEVNULL)
    traffic = await speak(service.keeper("far"), home, "k")
    rate = await _flood(traffic)
    print(f"50 kB messages, as a kernel says them: {rate:.0f} MB/s")
    await service.close()
    async with JoinedService(service.directory, service.port) as later:
        keeper = later.keeper("far", lasts=False)
        await keeper.connect()
        ear = Ear(keeper)
        ear.line.epoch = traffic._line.epoch
        ends = (psutil.Process(), psutil.Process(process.pid))
        used = [_cpu(end) for end in ends]
        began = time.perf_counter()
        heard = await keeper.hear(ear.line, home.path / "mirrors" / "anew", None, anew=False)
        took = time.perf_counter() - began
        size = FLOOD_MESSAGES * MESSAGE_BYTES
        assert heard.end[0] - heard.first[0] > FLOOD_MESSAGES, "the log had room for all of them"
        print(f"50 kB messages, by the link alone: {size / took / 1e6:.0f} MB/s (250 are meant)")
        here, there = (size / (_cpu(end) - was) / 1e6 for end, was in zip(ends, used, strict=True))
        print(f"  a processor each would do {here:.0f} MB/s here and {there:.0f} at the keeper")
        await keeper.end("k")
    await asyncio.to_thread(process.wait, 30)
    home.remove()


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


async def _flood(traffic: Traffic) -> float:
    """MB/s of what a kernel says, until a reader has all of it."""
    client = Client(traffic)
    began = time.perf_counter()
    header, parts = make_parts(
        "execute_request", {"code": f"flood {FLOOD_MESSAGES} {MESSAGE_BYTES}"}, "client"
    )
    traffic.submit(ClientMessage("shell", header, parts), "client")
    count = 0
    while count < FLOOD_MESSAGES:
        while client.reader.behind:
            _, entries = client.reader.take()
            count += sum(entry.message.msg_type == "stream" for entry in entries)
        if count < FLOOD_MESSAGES:
            await client.reader.wait()
    return FLOOD_MESSAGES * MESSAGE_BYTES / (time.perf_counter() - began) / 1e6


# A thousand links


async def _links(count: int) -> None:
    home = Home()
    process = psutil.Process()
    async with JoinedService(home.path / "service") as service:
        before = process.memory_info().rss
        documents = []
        for number in range(count):
            invitation = await service.joining.invite(f"k{number}")
            documents.append(json.loads(invitation.document))
        speaker = _start_speaker(documents)
        keepers = [service.keeper(f"k{number}") for number in range(count)]
        began = time.perf_counter()
        for keeper in keepers:
            keeper.connect_soon()
        while not all(keeper.is_connected for keeper in keepers):
            if time.perf_counter() - began > CONNECT_SECONDS:
                break
            await asyncio.sleep(0.1)
        print(f"{count} links were there after {time.perf_counter() - began:.1f} s")
        await asyncio.sleep(SETTLE_SECONDS)
        used = _cpu(process)
        await asyncio.sleep(IDLE_SECONDS)
        used = _cpu(process) - used
        more = process.memory_info().rss - before
        alive = sum(keeper.is_connected for keeper in keepers)
        print(f"{alive} of {count} links idle: {more / 2**20:.0f} MiB more (300 MB are meant), ")
        print(f"{100 * used / IDLE_SECONDS:.1f} % of a processor (5 are meant)")
    await asyncio.to_thread(speaker.communicate)
    home.remove()


def _start_speaker(documents: list[Any]) -> subprocess.Popen[bytes]:
    speaker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.links", "--speak-for-all"], stdin=subprocess.PIPE
    )
    assert speaker.stdin is not None
    speaker.stdin.write(json.dumps(documents).encode() + b"\n")
    speaker.stdin.flush()
    return speaker


async def _speak_for_all() -> None:
    """Be the keepers of the documents on stdin, without kernels."""
    documents = json.loads(sys.stdin.buffer.readline())
    turns = asyncio.Semaphore(16)
    speaking = [asyncio.ensure_future(_speak_for(document, turns)) for document in documents]
    await asyncio.to_thread(sys.stdin.buffer.read)  # until whoever has started it is gone
    for one in speaking:
        one.cancel()


async def _speak_for(document: dict[str, Any], turns: asyncio.Semaphore) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError):
            await _dial(document, turns)
        await asyncio.sleep(random.uniform(0.5, 1.0))


async def _dial(document: dict[str, Any], turns: asyncio.Semaphore) -> None:
    context = ssl.create_default_context(cadata=document["authority"])
    host, port = document["addresses"][0].split(":")
    name = document["server_name"]
    who = {"keeper": document["keeper"], "secret": document["secret"], "nonce": "n"}
    async with turns:  # this process has the work of a thousand machines
        reader, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=name
        )
        writer.write(pack({"join": 1, **who}))
        await receive(reader)
    writer.write(pack({"keeper": PROTOCOL, "pid": os.getpid(), "now": time.monotonic()}))
    answers = {
        "host": {"home": "/", "python": sys.executable, "env": {}},
        "hello": {"kept": [], "heard": [], "can": []},
    }
    while True:
        fields, data = await receive(reader)
        if fields:
            answer = answers.get(fields["ask"])
            writer.write(pack({"id": fields["id"], "answer": answer}))
        else:
            writer.write(pack({}, data))


if __name__ == "__main__":
    sys.exit(main())

"""Starts of broken kernelspecs beside sound ones: the sound ones work, and no process is left.

``python -m tests.support.starts [SOUND] [--broken BROKEN]`` is `scripts/starts`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import psutil

from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_broken_kernelspec, write_kernelspecs
from tests.support.processes import eventually, keepers, kill_all
from tests.support.rest import RestClient

KEEP: Final = ("--on-shutdown", "keep", "--start-queue-limit", "1000")
READY_SECONDS: Final = 120
END_SECONDS: Final = 30

SOUND_ARGV: Final = ["/bin/sh", "-c", "exec sleep 1000", "{connection_file}"]

BROKEN: Final[Mapping[str, Mapping[str, Any]]] = {
    "no-argv": {},
    "empty-argv": {"argv": []},
    "argv-of-a-text": {"argv": "/bin/true"},
    "argv-of-a-number": {"argv": [1]},
    "argv-of-null": {"argv": None},
    "argv-with-nul": {"argv": ["/bin/sh", "\0"]},
    "argv-with-surrogate": {"argv": ["/bin/sh", "\ud800"]},
    "no-such-program": {"argv": ["/nonexistent/kernel"]},
    "a-directory": {"argv": ["/"]},
    "an-empty-word": {"argv": [""]},
    "env-of-a-number": {"argv": SOUND_ARGV, "env": {"A": 1}},
    "env-of-a-list": {"argv": SOUND_ARGV, "env": ["A"]},
    "env-with-nul": {"argv": SOUND_ARGV, "env": {"A": "\0"}},
    "provisioner-of-a-text": {"argv": SOUND_ARGV, "metadata": {"kernel_provisioner": "text"}},
    "ends-at-once": {"argv": ["/bin/false"]},
}


def write_specs(home: Home) -> None:
    """The fake kernels, and each way in which a kernelspec is broken."""
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    write_broken_kernelspec(home.jupyter_path, "no-json")
    for name, fields in BROKEN.items():
        text = json.dumps({"display_name": name, "language": "none", **fields})
        write_broken_kernelspec(home.jupyter_path, name, text)


async def start_sound(rest: RestClient, name: str) -> None:
    """Start a kernel, have it do something, and delete it."""
    kernel = await rest.start_kernel(name)
    await rest.wait_for_state(kernel["id"], "idle", timeout=READY_SECONDS)
    code = "print('done')" if name == "python3" else "print done"
    ran = await Executions(rest, kernel["id"]).run(code)
    assert (ran["state"], ran["outputs"][0]["text"]) == ("ok", "done\n"), ran
    await rest.delete(kernel["id"])


async def start_broken(rest: RestClient, name: str) -> str:
    """Start what cannot start; how that was told."""
    response = await rest.http.post("/api/kernels", json={"name": name})
    told = response.json()
    if response.status_code == 201:  # the process says so itself
        model = await rest.wait_for_state(told["id"], "dead", timeout=READY_SECONDS)
        assert model.get("reason"), model
        await rest.delete(told["id"])
        return "dead"
    assert response.status_code >= 400, told
    assert "keeper of kernels has ended" not in told["message"], told
    return str(response.status_code)


async def starts(
    servers: Servers, *, sound: int, broken: int, at_a_time: int = 8, name: str = "fake"
) -> dict[str, Any]:
    """So many starts of each, in turns; raises `AssertionError` for what is not as it should be.

    One kernel of before is there throughout, and counts. What became of all is returned.
    """
    server = await asyncio.to_thread(servers.start)
    room = asyncio.Semaphore(at_a_time)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    began = time.monotonic()

    async def one(kind: str, spec: str) -> None:
        async with room:
            try:
                if kind == "sound":
                    await start_sound(rest, spec)
                    outcomes["sound"] += 1
                else:
                    outcomes[f"broken: {await start_broken(rest, spec)}"] += 1
            except Exception as fault:
                notes = getattr(fault, "__notes__", ())
                faults.append(f"{kind} {spec}: {fault!r} {' '.join(notes)}")

    async with RestClient(server.url, server.token) as rest:
        steady = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(steady, "idle", timeout=READY_SECONDS)
        counting = await Executions(rest, steady).begin("flood 1000000 20 100")
        wrong = ["no-json", *BROKEN]
        jobs = [("broken", wrong[number % len(wrong)]) for number in range(broken)]
        for number in range(sound):  # spread among them
            jobs.insert(number * (broken + sound) // sound, ("sound", name))
        await asyncio.gather(*(one(*job) for job in jobs))
        assert not faults, "\n".join(faults)
        assert outcomes["sound"] == sound, outcomes
        assert (await Executions(rest, steady).get(counting))["state"] == "running"
        assert [kernel["id"] for kernel in await rest.kernels()] == [steady]
        await rest.delete(steady)
        await nothing_runs(servers.home, server.pid)
    await asyncio.to_thread(servers.terminate)
    await eventually(lambda: not servers.home.processes(), END_SECONDS)
    return {**outcomes, "seconds": round(time.monotonic() - began, 1)}


async def nothing_runs(home: Home, server: int) -> None:
    """Returns when there is nothing but the server and its keeper; not so, it tells what is."""

    def nothing() -> bool:
        found = home.processes()
        spared = {server, *(process.pid for process in keepers(found))}
        left = [_command(process) for process in found if process.pid not in spared]
        assert not left, f"{len(left)} processes are left: {left[:5]}"
        return True

    await eventually(nothing, END_SECONDS)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "one that has ended"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sound", type=int, nargs="?", default=200)
    parser.add_argument("--broken", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=8)
    parser.add_argument("--name", choices=["fake", "python3"], default="fake", help="of the sound")
    options = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    home = Home()
    write_specs(home)
    servers = Servers(home, *KEEP)
    try:
        print(asyncio.run(starts(servers, **options)))  # noqa: T201
    except AssertionError as fault:
        print(fault)  # noqa: T201
        sys.exit(1)
    finally:
        kill_all(home.processes())
        home.remove()


if __name__ == "__main__":
    main()

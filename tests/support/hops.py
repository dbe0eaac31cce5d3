"""The three journeys of docs/architecture.md, counted in hops: modules and functions of `app/`.

``python -m tests.support.hops [--before COMMIT] [--list]`` (``scripts/hops``) runs a server, its
keeper and a fake kernel, has both processes note which functions are called, and prints how many
there are, and in how many modules, for

- a start: from ``POST /api/kernels`` to the 201;
- a message: from an ``execute_request`` to its reply and the idle status;
- a crash: from the start of the next server to its first answer about a kernel that it has adopted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from tests.support.channels import JupyterChannels
from tests.support.figures import export
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspecs
from tests.support.processes import eventually, keepers, kill_all
from tests.support.rest import RestClient
from tests.support.rooms import REPOSITORY
from tests.support.server import CommandServer

NOTING: Final = '''
"""Notes the functions of app/ that this process calls; SIGUSR1 forgets, SIGUSR2 writes them."""
import json, os, signal, sys, threading

root = {root!r}
seen = set()

def note(frame, event, _argument):
    if event == "call":
        code = frame.f_code
        if code.co_filename.startswith(root) and code.co_name[0] != "<":
            seen.add((code.co_filename[len(root):], code.co_qualname))

def write(*_):
    path = os.path.join({directory!r}, f"{{os.getpid()}}.json")
    with open(path + ".new", "w") as file:
        json.dump(sorted(seen), file)
    os.rename(path + ".new", path)

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in ("app", "app.keeper"):
    signal.signal(signal.SIGUSR1, lambda *_: seen.clear())
    signal.signal(signal.SIGUSR2, write)
    threading.setprofile(note)
    sys.setprofile(note)
'''
"""A ``sitecustomize`` module, which each Python process imports when it starts."""

Functions = set[tuple[str, str]]
"""Files below ``app/`` and names of functions in them."""


class Noting:
    """The processes of one server, and what they note."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.home = Home()
        write_kernelspecs(self.home.jupyter_path)
        self._directory = directory
        text = NOTING.format(root=f"{root / 'app'}{os.sep}", directory=str(directory))
        (directory / "sitecustomize.py").write_text(text)

        class Server(CommandServer):
            pass

        Server.directory = root
        self._server_class: Callable[..., CommandServer] = Server

    def start(self) -> CommandServer:
        env = {
            "KERNELKEEP_ON_SHUTDOWN": "keep",
            "KERNELKEEP_FORK_KERNELS": "",
            "PYTHONPATH": str(self._directory),
        }
        return self._server_class(env=env, home=self.home).start()

    def _processes(self, server: CommandServer) -> list[psutil.Process]:
        return [psutil.Process(server.pid), *keepers(self.home.processes())]

    def forget(self, server: CommandServer) -> None:
        for process in self._processes(server):
            process.send_signal(signal.SIGUSR1)

    async def noted(self, server: CommandServer) -> Functions:
        """What server and keeper have called since they were to forget."""
        found: Functions = set()
        for process in self._processes(server):
            file = self._directory / f"{process.pid}.json"
            file.unlink(missing_ok=True)
            process.send_signal(signal.SIGUSR2)
            await eventually(file.exists, 20)
            found |= {(name, function) for name, function in json.loads(file.read_text())}
        return found


async def journeys(root: Path) -> dict[str, Functions]:
    """What is called on each journey, by a clone's application."""
    found = {}
    with TemporaryDirectory() as directory:
        noting = Noting(root, Path(directory))
        try:
            server = await asyncio.to_thread(noting.start)
            async with RestClient(server.url, server.token) as rest:
                await _warm_up(rest)
                noting.forget(server)
                kernel_id = (await rest.start_kernel("fake"))["id"]
                found["a start"] = await noting.noted(server)
                await rest.wait_for_state(kernel_id, "idle", timeout=60)
                channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
                async with channels:
                    await channels.execute("print a")
                    noting.forget(server)
                    await channels.execute("print a")
                    found["a message"] = await noting.noted(server)
            server.crash()
            server = await asyncio.to_thread(noting.start)
            async with RestClient(server.url, server.token) as rest:
                await rest.wait_for_state(kernel_id, "idle", timeout=60)
                found["a crash"] = await noting.noted(server)
        finally:
            kill_all(noting.home.processes())
            noting.home.remove()
    return found


async def _warm_up(rest: RestClient) -> None:
    """Start a first kernel: the keeper starts with it, which is no part of later starts."""
    first = (await rest.start_kernel("fake"))["id"]
    await rest.wait_for_state(first, "idle", timeout=60)
    await rest.delete(first)


def _summary(functions: Functions) -> str:
    """How many there are, in how many modules, and in which directories these are."""
    modules = {file for file, _ in functions}
    directories = Counter(file.partition("/")[0] if "/" in file else "app" for file in modules)
    where = ", ".join(f"{name} {number}" for name, number in sorted(directories.items()))
    return f"{len(modules)} modules ({where}), {len(functions)} functions"


def main() -> None:
    """Print the hops of each journey."""
    parser = argparse.ArgumentParser(prog="scripts/hops")
    parser.add_argument("--before", metavar="COMMIT", help="show those of a commit, too")
    parser.add_argument("--list", action="store_true", help="name the functions")
    options = parser.parse_args()
    trees = [("now", REPOSITORY)]
    with TemporaryDirectory() as directory:
        if options.before:
            trees.insert(0, (options.before, export(options.before, directory)))
        for name, root in trees:
            for journey, functions in asyncio.run(journeys(root)).items():
                print(f"{name}: {journey}: {_summary(functions)}")
                for file, function in sorted(functions) if options.list else ():
                    print(f"    {file}: {function}")


if __name__ == "__main__":
    main()

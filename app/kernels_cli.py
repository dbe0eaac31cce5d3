"""``kernelkeep kernels``: the kernels of a state directory, whether a server has it now or not."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NoReturn

from .commands import add_state_dir, say, state_dir_of
from .keeper.processes import open_process, start_time
from .keeper.protocol import SPOKEN, Fields, Garbled, aside_dirs, keeper_dir
from .managers.errors import KeeperUnavailable
from .managers.handover.lock import Lock
from .managers.handover.store import (
    KernelRecord,
    OtherSchema,
    SQLiteRegistry,
    UnusableRegistry,
)
from .managers.processes.keeper.link import KeeperLink
from .managers.processes.run_files import KEPT
from .managers.processes.transports import socket_files

__all__ = ["kernels_command"]

TERMINATE_SECONDS: Final = 5.0
"""Seconds between SIGTERM and SIGKILL."""

SERVER_SECONDS: Final = 60.0
"""How long the server may take to answer one request."""


def kernels_command(arguments: list[str]) -> NoReturn:
    """Run ``kernelkeep kernels ...``. Exits with 0, 1 if something was not done, 2 for misuse."""
    parser = argparse.ArgumentParser(
        prog="kernelkeep kernels",
        description="The kernels that outlive their server (--on-shutdown keep).",
    )
    state = add_state_dir(argparse.ArgumentParser(add_help=False))
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser(
        "list", parents=[state], help="list the kernels, and whether they run"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    stopping = commands.add_parser(
        "stop", parents=[state], help="end kernels, with or without their server"
    )
    stopping.add_argument("ids", nargs="*", metavar="ID")
    stopping.add_argument("--all", action="store_true", help="end all kernels")
    adopting = commands.add_parser(
        "adopt", parents=[state], help="have the server use a kernel of another program"
    )
    adopting.add_argument("file", type=Path, help="the kernel's connection file")
    options = parser.parse_args(arguments)
    state_dir = state_dir_of(options.state_dir, options.config)
    try:
        if options.command == "list":
            _list(state_dir, as_json=options.json)
        elif options.command == "stop":
            if not options.ids and not options.all:
                parser.error("stop: name kernels, or say --all")
            _stop(state_dir, None if options.all else options.ids)
        else:
            _adopt(state_dir, options.file)
    except _FAILURES as error:
        say(str(error))
        sys.exit(1)
    sys.exit(0)


class _NotDone(Exception):
    """What was asked for cannot be done; the text says why."""


_FAILURES: Final = (UnusableRegistry, _NotDone, OSError)


def _records(state_dir: Path) -> list[KernelRecord]:
    path = state_dir / "registry.sqlite"
    if not path.exists():
        return []
    try:
        # The registry is not migrated: a server of another version may be using it.
        store = SQLiteRegistry(path, migrate=False)
        with contextlib.closing(store):
            return store.load()
    except OtherSchema:
        raise UnusableRegistry(
            f"{path} was written by another version of kernelkeep: use that, or start a server "
            "of this one first"
        ) from None
    except sqlite3.Error as error:
        raise UnusableRegistry(f"{path} cannot be read: {error}") from None


def _runs(record: KernelRecord) -> bool | None:
    """Whether a kernel's process runs; None if this host cannot tell."""
    if record.pid is None:
        return None
    return start_time(record.pid) == record.start_time


def _list(state_dir: Path, *, as_json: bool) -> None:
    lines: list[tuple[str, str, int | None, str, str]] = []
    for record in _records(state_dir):
        runs = _runs(record)
        state = record.execution_state if runs or runs is None else "dead"
        active = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.last_activity))
        lines.append((record.id, record.name, record.pid, state, active))
    names = ("id", "name", "pid", "execution_state", "last_activity")
    if as_json:
        print(json.dumps([dict(zip(names, line, strict=True)) for line in lines], indent=1))
        return
    for line in (("ID", "NAME", "PID", "STATE", "LAST ACTIVITY"), *lines):
        print("{:<36}  {:<16}  {!s:>8}  {:<8}  {}".format(*line))


def _stop(state_dir: Path, ids: list[str] | None) -> None:
    known = {record.id: record for record in _records(state_dir)}
    wanted = list(known) if ids is None else ids
    unknown = [kernel_id for kernel_id in wanted if kernel_id not in known]
    if unknown:
        raise _NotDone(f"there is no kernel {unknown[0]}")
    problems: list[str] = []  # a kernel that cannot be ended keeps no other from being ended
    # With the lock of the state directory this command may end kernels by itself: no server has
    # them, and none can start meanwhile. If a server has the lock, the server is asked to end its
    # kernels: it knows things about them that are in no file.
    try:
        lock = Lock(state_dir)
    except UnusableRegistry:
        for kernel_id in wanted:
            with _noted(problems):
                _ask_server(state_dir, {"ask": "shut_down", "kernel_id": kernel_id})
    else:
        with contextlib.closing(lock):
            left = {**known}
            store = SQLiteRegistry(state_dir / "registry.sqlite")
            with contextlib.closing(store):
                for kernel_id in wanted:
                    with _noted(problems):
                        _end(known[kernel_id])
                        store.delete(kernel_id)
                        _clean(state_dir, left.pop(kernel_id))
            ended = None if ids is None else known.keys() - left.keys()
            for directory in (keeper_dir(state_dir), *aside_dirs(state_dir)):
                with _noted(problems):
                    asyncio.run(_tell_keeper(directory, ended, left))
    if problems:
        raise _NotDone("\n".join(problems))


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Add the error of the block, if it fails, to ``problems``."""
    try:
        yield
    except _FAILURES as error:
        problems.append(str(error))


async def _tell_keeper(path: Path, ended: Collection[str] | None, left: Collection[str]) -> None:
    """Have a keeper forget the kernels ``ended``; with None, all of its kernels.

    Kernels in ``left`` stay in any case. Processes of kernels that are forgotten are killed.
    ``path`` is the keeper's directory. The keeper may have kernels that are in no registry. It ends
    when it has none any more.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        link = await KeeperLink.open(directory, path, _Stranger())
        if link is not None and link.protocol in SPOKEN:
            kept, _ = await link.ask({"ask": "kept"})
            for record in kept:
                kernel_id, pid = record["kernel_id"], record["pid"]
                if kernel_id not in left and (ended is None or kernel_id in ended):
                    await link.ask({"ask": "drop", "kernel_id": kernel_id})
                    # The request ``end`` comes last: a keeper without kernels ends, and answers no
                    # further request.
                    await link.ask({"ask": "end", "kernel_id": kernel_id, "pid": pid})
        if link is not None:
            await link.close()
    except (Garbled, KeeperUnavailable) as error:
        raise _NotDone(f"the keeper of these kernels goes on: {error}") from None
    finally:
        os.close(directory)


class _Stranger:
    """The owner of a `KeeperLink` that has no kernels: events and bells are for servers."""

    def on_event(self, fields: Fields) -> None:
        """Ignore this: the command has no kernels."""

    def on_bells(self, data: bytes) -> None:
        """Ignore this: the command has no kernels."""

    def on_end(self, link: KeeperLink) -> None:
        """Ignore this: the command has no kernels."""


def _clean(state_dir: Path, record: KernelRecord) -> None:
    """Remove the files of a kernel that has ended: connection file, sockets, output and log."""
    files = [
        state_dir / "journals" / f"{record.id}.journal",
        state_dir / "output" / f"kernel-{record.id}.log",
    ]
    if record.connection_file and not record.external:
        files += [Path(record.connection_file), *socket_files(record.connection)]
    for file in files:
        file.unlink(missing_ok=True)
    shutil.rmtree(state_dir / "logs" / KEPT / record.id, ignore_errors=True)


def _end(record: KernelRecord) -> None:
    """End a kernel's process and its process group: SIGTERM, then SIGKILL.

    Raises `_NotDone` if the process is on another host, or does not end.
    """
    if not record.exclusive or record.dead:
        return  # it is not ours to end, or has ended
    if record.pid is None:
        raise _NotDone(f"kernel {record.id} runs elsewhere: only a server can end it")
    process = open_process(record.pid, record.start_time)
    if process is None:
        return
    with contextlib.closing(process):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.signal_group(number)
            if process.wait(TERMINATE_SECONDS):
                return
    raise _NotDone(f"process {record.pid} of kernel {record.id} does not end")


def _adopt(state_dir: Path, file: Path) -> None:
    print(_ask_server(state_dir, {"ask": "adopt", "file": str(file)}))


def _ask_server(state_dir: Path, asked: dict[str, str]) -> str:
    """Send a request to the server that has this state directory; returns the kernel's id."""
    from .operator import MAX_LINE, open_socket

    try:
        connection = open_socket(state_dir)
    except OSError:
        raise _NotDone(
            f"no server says that it has {state_dir}; one under uvicorn does not: use its API"
        ) from None
    with connection, connection.makefile("rb") as answers:
        connection.settimeout(SERVER_SECONDS)
        connection.sendall(json.dumps(asked).encode() + b"\n")
        try:
            answer = json.loads(answers.readline(MAX_LINE))
        except ValueError:
            raise _NotDone("the server has ended") from None
    if "id" not in answer:
        raise _NotDone(answer.get("message", "the server says no more"))
    return str(answer["id"])

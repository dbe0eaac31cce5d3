"""One connection to one fork server's process, and how such a process is started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from ....keeper.processes import HAS_PIDFDS, HAS_PROC, open_pidfd
from ...errors import KeeperUnavailable

__all__ = [
    *("SUPPORTED", "CannotFork", "ForkLink", "NotForkedYet", "Order", "Outdated", "Recipe"),
    "Runner",
]

SUPPORTED: Final = HAS_PIDFDS and HAS_PROC and hasattr(os, "memfd_create")
"""Whether kernels can be forked here. The abstract names of sockets are Linux's, too."""

PROGRAM: Final = Path(__file__).with_name("fork_server.py")

READY_SECONDS: Final = 30.0
"""How long a fork server may take for its imports."""

FORK_SECONDS: Final = 15.0
"""How long a fork may take; it is long because the machine may be overloaded."""

ANSWER_SECONDS: Final = 5.0
"""How long a fork server may take to end."""


class CannotFork(Exception):
    """No kernel can be forked now; the text says why. A kernel can still be started."""


class NotForkedYet(CannotFork):
    """There is no fork server yet; it is brought up when the kernel started instead is ready."""


class Outdated(NotForkedYet):
    """The fork server's packages differ from those that an interpreter started now would have."""

    def __init__(self) -> None:
        super().__init__("packages have changed since its fork server was started")


class Recipe(NamedTuple):
    """What a kernel needs of its fork server: the parts that cannot be changed after the fork."""

    interpreter: tuple[str, ...]
    """The interpreter's command with its options."""
    preload: tuple[str, ...]
    """Modules that are imported beside ipykernel."""
    env: tuple[tuple[str, str], ...]
    """The environment variables that the interpreter and its libraries read only once."""


class Order(NamedTuple):
    """What a fork server needs to know to make a kernel of a fork."""

    command: Sequence[str]
    arguments: Sequence[str]
    """The part of ``command`` that is the kernel's arguments."""
    env: Mapping[str, str]
    cwd: str
    output: int
    """The descriptor that becomes the kernel's stdout and stderr."""
    limits: Mapping[str, int]
    """Resource limits by the names of the `resource` module without RLIMIT_."""
    leave: int
    """The read end of a pipe. The kernel begins when a byte comes, and ends if none comes."""


class Runner(Protocol):
    """The keeper, as fork servers see it: their parent, and that of the kernels that they fork."""

    @property
    def on_lost(self) -> list[Callable[[], None]]:
        """Callbacks for the keeper's end."""

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Start a process; returns its id and start time. Raises `OSError`."""


class ForkLink:
    """A fork server's process, which runs `PROGRAM`, and the connection to it.

    ``ready`` is done when the process can fork, or raises `CannotFork`. The process and the kernels
    that it forks are the keeper's children. If the server gives up on a fork, the kernel ends by
    itself, for it waits to be told to begin.
    """

    def __init__(self, recipe: Recipe, keeper: Runner) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._count = 0
        self._retired = False
        self._process: _Process | None = None
        self._control: socket.socket | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._bound = self._loop.call_later(READY_SECONDS, self._give_up)
        self._opening = self._loop.create_task(self._open(recipe, keeper), name="fork server")

    async def _open(self, recipe: Recipe, keeper: Runner) -> None:
        try:
            # `_end` may cancel this task while it waits. Nothing is awaited between the last await
            # in `_have_run` and `add_reader`: so `_end` finds the connection, or there is none.
            self._process, control = await _have_run(recipe, keeper)
        except (OSError, KeeperUnavailable) as error:
            # Called by the loop, and not from here: `_end` would cancel this task.
            self._loop.call_soon(self._end, f"its fork server cannot be executed: {error}")
            return
        self._control = control
        self._loop.add_reader(control, self._on_readable)

    @property
    def pid(self) -> int | None:
        """The fork server's process id, once it has been executed."""
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the fork server can be asked to fork now or later."""
        return not self.ended.done() and not self._retired

    @property
    def retired(self) -> bool:
        """Whether the fork server takes no more orders, and ends when the last one is answered."""
        return self._retired

    async def fork(self, order: Order) -> int:
        """Fork a kernel; returns its process id. Call it once ``ready``. Raises `CannotFork`."""
        assert self._control is not None
        self._count += 1
        number = self._count
        answer = self._asked[number] = self._loop.create_future()
        descriptors: list[int] = []
        try:
            descriptors.append(_written(order))
            descriptors.append(order.output)
            descriptors.append(os.open(order.cwd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            descriptors.append(order.leave)
            # A packet goes whole or not at all. If the server reads so little that there is no
            # room, this raises `BlockingIOError`, and the kernel is started instead.
            socket.send_fds(self._control, [json.dumps({"fork": number}).encode()], descriptors)
            async with asyncio.timeout(FORK_SECONDS):
                pid: int = await answer
                return pid
        except TimeoutError:
            # The fork may still be made. Such a kernel ends: nothing is written to the pipe at
            # which it waits, and the caller closes the pipe.
            self.kill()
            raise CannotFork("its fork server does not answer, and was killed") from None
        except OSError as error:
            raise CannotFork(f"it could not be forked: {error}") from None
        finally:
            del self._asked[number]
            for descriptor in descriptors:
                if descriptor not in (order.output, order.leave):
                    os.close(descriptor)
            self._end_if_unused()

    def retire(self) -> None:
        """Take no more orders, and end the fork server when those before are answered."""
        self._retired = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._retired and not self._asked:
            self._end("its fork server is not needed any more")

    def kill(self) -> None:
        """Kill the fork server; the kernels that it has forked go on."""
        if self._process is not None:
            self._process.kill()
        self._end("its fork server was killed")

    async def close(self) -> None:
        """End the fork server by closing its socket, and kill it if it does not end in time.

        Returns when it has ended.
        """
        self._end("its fork server is being stopped")
        await asyncio.wait({self._opening})
        if self._process is None:
            return
        if not await asyncio.to_thread(self._process.ends, ANSWER_SECONDS):
            self._process.kill()
            await asyncio.to_thread(self._process.ends, ANSWER_SECONDS)

    def _give_up(self) -> None:
        if not self.ready.done():
            if self._process is not None:
                self._process.kill()
            self._end(f"its fork server was not ready within {READY_SECONDS:g} s")

    def _on_readable(self) -> None:
        assert self._control is not None
        try:
            packet = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._end("its fork server has ended")
            return
        self._on_message(json.loads(packet))

    def _on_message(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self._bound.cancel()
                if not self.ready.done():
                    self.ready.set_result(None)
            case {"refused": text}:
                self._end(text)
            case {"forked": number, "pid": pid}:
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(pid)
            case {"failed": number, "error": text}:
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(CannotFork(f"it could not be forked: {text}"))
            case {"outdated": number}:
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(Outdated())

    def _end(self, reason: str) -> None:
        self._bound.cancel()
        # The end of the process, a refusal, `kill` and `close` may all call this, in any order: the
        # first call counts.
        if self.ended.done():
            return
        self.ended.set_result(None)
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        else:
            # The keeper may have launched the process although its answer has not come. Such a
            # process finds no listener at the address that it was given, and exits.
            self._opening.cancel()
        if not self.ready.done():
            self.ready.set_exception(CannotFork(reason))
            self.ready.exception()  # or asyncio would log the error if no task awaits `ready`
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(CannotFork(reason))


class _Process:
    """A process that is the keeper's child, held by a pidfd."""

    def __init__(self, pid: int, started: str) -> None:
        self.pid = pid
        pidfd = open_pidfd(pid, started)
        if pidfd is None:
            raise ProcessLookupError(f"process {pid} has ended")
        self.pidfd = pidfd

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def ends(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds. Blocks."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    # The descriptor is closed only when nothing refers to this object any more: `ForkLink.close`
    # polls it in a thread, and after an earlier close its number could be another file's by then.
    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self.pidfd)


async def _have_run(recipe: Recipe, keeper: Runner) -> tuple[_Process, socket.socket]:
    """Have the keeper run a fork server; returns it with its connection.

    Raises `OSError` or `KeeperUnavailable`.
    """
    # Another process could connect to the name, but only the fork server's connection is taken.
    name = f"kernelkeep-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        listener.bind(f"\0{name}")
        listener.listen()
        command = [*recipe.interpreter, str(PROGRAM), f"@{name}", *recipe.preload]
        process = _Process(*await keeper.run(command, dict(recipe.env)))
        while True:
            if process.pidfd in await _readable(listener.fileno(), process.pidfd):
                raise ProcessLookupError(f"process {process.pid} has ended")
            # Both may be readable, and a connection may be gone before it is accepted. The end of
            # the process is checked first: a process that has ended serves no forks.
            with contextlib.suppress(BlockingIOError):
                control, _ = listener.accept()
                if _peer(control) == process.pid:
                    control.setblocking(False)
                    return process, control
                control.close()


async def _readable(*descriptors: int) -> set[int]:
    """Wait until a descriptor is readable; returns all that are. It has no bound of its own."""
    loop = asyncio.get_running_loop()
    ready: set[int] = set()
    changed = asyncio.Event()

    def note(descriptor: int) -> None:
        ready.add(descriptor)
        changed.set()

    for descriptor in descriptors:
        loop.add_reader(descriptor, note, descriptor)
    try:
        await changed.wait()
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
    return ready


def _peer(connection: socket.socket) -> int:
    """The id of the process at the other end of a connection."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[0])


def _written(order: Order) -> int:
    """The descriptor of a file in memory that holds the order, which may not fit in a packet."""
    text = json.dumps(
        {
            "command": list(order.command),
            "arguments": list(order.arguments),
            "env": dict(order.env),
            "limits": dict(order.limits),
        }
    )
    descriptor = os.memfd_create("kernelkeep-order", os.MFD_CLOEXEC)
    data = memoryview(text.encode())
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor

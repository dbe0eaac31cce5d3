"""Fork servers, as the service sees them: it starts them, asks them for kernels, and ends them.

A forked kernel is the child of its fork server (`app.managers.fork_server` is the program). The
server tells how it ended; that it ended is known by its pidfd, also when the server is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from app.keeper.processes import UNKNOWN_EXIT

__all__ = ["CannotFork", "ForkServers", "ForkedProcess", "Order", "Recipe"]

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("fork_server.py")

SERVERS: Final = 2
"""Fork servers for kernels that are alike. They take turns, so that neighbours hash differently."""

READY_SECONDS: Final = 30.0
"""How long a fork server may take for its imports."""

ANSWER_SECONDS: Final = 5.0
"""How long a fork may take, and how long the exit code of a kernel that has ended."""

RETRY_SECONDS: Final = 60.0
"""When a fork server that could not start is tried again."""

MAX_RECIPES: Final = 8
"""Kinds of kernels with fork servers of their own; they take memory."""

SUPPORTED: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")


class CannotFork(Exception):
    """No kernel can be forked now; the text says why. It can still be started."""


class Recipe(NamedTuple):
    """What a fork server must be for a kernel: nothing of it can be changed after the fork."""

    interpreter: tuple[str, ...]
    """Its command with its options."""
    preload: tuple[str, ...]
    """Modules that are imported beside ipykernel."""
    env: tuple[tuple[str, str], ...]
    """The variables that an interpreter, or a library that is loaded, reads once."""


class Order(NamedTuple):
    """What one kernel is to be."""

    command: Sequence[str]
    arguments: Sequence[str]
    """Those of ``command`` that are the kernel's own."""
    env: Mapping[str, str]
    cwd: str
    output: int
    """The descriptor for its stdout and stderr."""
    limits: Mapping[str, int]
    """Resource limits by the names of the `resource` module without RLIMIT_."""


class ForkedProcess:
    """A forked kernel's process: what jupyter_client's local provisioner needs of a `Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, server: _ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        # Its number is its own: the server reaps it when we say so, and not before.
        self._pidfd: int | None = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code, minus the number of a signal, once it is known."""
        return self.returncode

    async def outcome(self) -> int | None:
        """The exit code of a process that has ended; waits for it up to `ANSWER_SECONDS`."""
        if self.returncode is None and self._has_ended():
            self.returncode = await self._server.code_of(self.pid)
            self._close()
        return self.returncode

    def wait(self) -> int | None:
        """What `poll` says: whoever calls this has waited already."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the process alone; raises `ProcessLookupError` when it has ended."""
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _has_ended(self) -> bool:
        if self._pidfd is None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class _ForkServer:
    """One process of `PROGRAM`. ``ready`` is done when it forks, or raises `CannotFork`."""

    def __init__(self, recipe: Recipe) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._codes: dict[int, asyncio.Future[int]] = {}
        self._count = 0
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        try:
            self._process = subprocess.Popen(
                [*recipe.interpreter, str(PROGRAM), str(theirs.fileno()), *recipe.preload],
                env=dict(recipe.env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise CannotFork(f"its fork server cannot be executed: {error}") from None
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._loop.add_reader(self._control, self._on_readable)
        self._bound = self._loop.call_later(READY_SECONDS, self._give_up)

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._control.fileno() != -1

    async def fork(self, order: Order) -> ForkedProcess:
        """A kernel's process. Raises `CannotFork`."""
        self._count += 1
        number = self._count
        answer = self._asked[number] = self._loop.create_future()
        descriptors: list[int] = []
        try:
            descriptors.append(_written(order))
            descriptors.append(order.output)
            descriptors.append(os.open(order.cwd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            socket.send_fds(self._control, [json.dumps({"fork": number}).encode()], descriptors)
            async with asyncio.timeout(ANSWER_SECONDS):
                pid = await answer
            return ForkedProcess(pid, self)
        except TimeoutError:
            self.kill()
            raise CannotFork("its fork server does not answer, and was killed") from None
        except OSError as error:
            raise CannotFork(f"it could not be forked: {error}") from None
        finally:
            del self._asked[number]
            for descriptor in descriptors:
                if descriptor != order.output:
                    os.close(descriptor)

    async def code_of(self, pid: int) -> int:
        """The exit code of a kernel that has ended, which is reaped then."""
        code = self._codes.setdefault(pid, self._loop.create_future())
        if self.alive:
            await asyncio.wait({code}, timeout=ANSWER_SECONDS)
        del self._codes[pid]
        self._reap(pid)
        return code.result() if code.done() else UNKNOWN_EXIT

    def kill(self) -> None:
        """End the server by force; its kernels go on."""
        self._process.kill()
        self._end("its fork server was killed")

    async def close(self) -> None:
        """End the server, by its socket and then by force; returns when it is gone."""
        self._end("its fork server is being stopped")
        try:
            await asyncio.to_thread(self._process.wait, ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait, ANSWER_SECONDS)

    def _give_up(self) -> None:
        if not self.ready.done():
            self._process.kill()
            self._end(f"its fork server was not ready within {READY_SECONDS:g} s")

    def _on_readable(self) -> None:
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
                self._codes[pid] = self._loop.create_future()
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(pid)
                else:  # whoever asked has given up
                    os.kill(pid, signal.SIGKILL)
            case {"failed": number, "error": text}:
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(CannotFork(f"it could not be forked: {text}"))
            case {"ended": pid, "code": code}:
                known = self._codes.setdefault(pid, self._loop.create_future())
                if not known.done():
                    known.set_result(code)

    def _reap(self, pid: int) -> None:
        if self.alive:
            try:
                self._control.send(json.dumps({"reap": pid}).encode())
            except OSError as error:
                logger.debug("process %d stays a zombie: %s", pid, error)

    def _end(self, reason: str) -> None:
        self._bound.cancel()
        if not self.alive:
            return
        self._loop.remove_reader(self._control)
        self._control.close()
        self.ended.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(CannotFork(reason))
            self.ready.exception()  # there may be nobody who wants to know
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(CannotFork(reason))
        for pid, code in self._codes.items():
            if not code.done():
                logger.debug("how process %d ends will not be known", pid)
                code.set_result(UNKNOWN_EXIT)


class _Family:
    """The fork servers of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.servers: list[_ForkServer] = []
        self.refusal = ""
        self.retry_at = 0.0  # by the loop's clock
        self._turn = 0

    def living(self) -> list[_ForkServer]:
        """Those that fork or will; none if they have all ended."""
        return [server for server in self.servers if server.alive]

    def next(self) -> _ForkServer | None:
        """The next server that is ready."""
        ready = [server for server in self.living() if server.ready.done()]
        self._turn += 1
        return ready[self._turn % len(ready)] if ready else None


class ForkServers:
    """The fork servers of one service. Make it inside a running event loop, and `close` it there.

    They are started when they are first needed, or with `prepare`.
    """

    def __init__(self) -> None:
        self._families: dict[Recipe, _Family] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The process ids of the servers that there are."""
        return [server.pid for family in self._families.values() for server in family.living()]

    async def fork(self, recipe: Recipe, order: Order) -> ForkedProcess:
        """Fork a kernel, once a server is ready for it. Raises `CannotFork`."""
        family = self._family(recipe)
        had = bool(family.servers)
        living = family.living()
        if not living:
            self._start(family)
            if had:
                # Its imports would take as long as those of a kernel that is just started.
                raise CannotFork(family.refusal or "its fork servers have ended; there will be new")
            living = family.living()
        if not any(server.ready.done() for server in living):
            await living[0].ready
        server = family.next()
        if server is None:
            raise CannotFork(family.refusal or "its fork servers have ended")
        self._start_another(family)
        return await server.fork(order)

    def prepare(self, recipe: Recipe) -> None:
        """Start the servers for a recipe now."""
        try:
            self._start(self._family(recipe))
        except CannotFork as error:
            logger.warning("no fork servers: %s", error)

    def _family(self, recipe: Recipe) -> _Family:
        if not SUPPORTED:
            raise CannotFork("this platform has no pidfd")
        if self._closed:
            raise CannotFork("the server is shutting down")
        family = self._families.get(recipe)
        if family is None:
            if len(self._families) >= MAX_RECIPES:
                raise CannotFork(
                    f"there are fork servers for {MAX_RECIPES} kinds of kernels already"
                )
            family = self._families[recipe] = _Family(recipe)
        return family

    def _start(self, family: _Family) -> None:
        """Start one more server. Raises `CannotFork` for a family that was refused lately."""
        loop = asyncio.get_running_loop()
        if family.refusal:
            if loop.time() < family.retry_at:
                raise CannotFork(family.refusal)
            family.refusal = ""
        family.servers = [server for server in family.servers if server.alive]
        try:
            server = _ForkServer(family.recipe)
        except CannotFork as error:
            self._refuse(family, str(error))
            raise
        family.servers.append(server)
        task = loop.create_task(self._supervise(family, server), name=f"fork server {server.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, family: _Family, server: _ForkServer) -> None:
        """See a server through its life, which has no bound; have another started beside it."""
        try:
            await server.ready
        except CannotFork as error:
            if not self._closed:
                self._refuse(family, str(error))
        else:
            logger.info("fork server %d is ready", server.pid)
            self._start_another(family)
            await server.ended
            if not self._closed:
                logger.warning("fork server %d has ended; its kernels go on", server.pid)
        await server.close()

    def _start_another(self, family: _Family) -> None:
        if len(family.living()) < SERVERS and not self._closed:
            with contextlib.suppress(CannotFork):  # which has been logged
                self._start(family)

    def _refuse(self, family: _Family, reason: str) -> None:
        family.refusal = reason
        family.retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
        logger.warning("kernels are not forked but started: %s", reason)

    async def close(self) -> None:
        """End every server; returns when they are gone."""
        self._closed = True
        servers = [server for family in self._families.values() for server in family.servers]
        await asyncio.gather(*(server.close() for server in servers))
        if self._tasks:
            await asyncio.wait(self._tasks)


def _written(order: Order) -> int:
    """The order in a file of its own in memory, whose size no socket bounds."""
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

"""The keeper, as the service sees it: it is found or started, and asked for processes.

The keeper (`app.keeper`) is the parent of local kernels, so that they outlive the server. It ends
by itself. If it dies, its kernels live on: another is started at once and watches them by their
pids; only how they end is then known no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from app.keeper.processes import (
    UNKNOWN_EXIT,
    open_process,
    signal_group,
)
from app.keeper.protocol import (
    PROTOCOL,
    Fields,
    Garbled,
    TooOpen,
    check_private,
    keeper_dir,
    open_dir,
)
from app.machine import network_file_system
from app.managers.errors import KeeperUnavailable
from app.managers.keeper_link import KeeperLink, execute_keeper
from app.settings import Settings

__all__ = ["Keeper", "Kept", "check_state_dir", "new_keeper"]

logger = logging.getLogger(__name__)

START_SECONDS: Final = 30.0
"""How long a keeper may take to start, and one that ends to be gone."""

CLOSE_SECONDS: Final = 2.0
"""How long one that is left with nothing to keep may take to end."""

MAX_EARLY: Final = 256
"""Ends of processes that are remembered for whoever asks for them later; the oldest go first."""

KILL_SECONDS: Final = 5.0
"""How long a process that was killed may take to be gone."""

RETRY_SECONDS: Final = 5.0
"""When a keeper that could not be started is tried again, if kernels need it."""

TAIL_BYTES: Final = 8192
TAIL_LINES: Final = 12


class Kept(msgspec.Struct, frozen=True):
    """What the keeper knows of one kernel.

    ``start_time`` is opaque. ``exit_code`` is None while the process runs, minus the number of the
    signal that killed it, or `UNKNOWN_EXIT`. ``first`` is the index of the oldest message of its
    iopub that the keeper has, ``next`` the one that the next will get. ``output`` is the file of
    what the process writes; ``info`` the connection information that is watched.
    """

    kernel_id: str
    pid: int
    start_time: str
    exit_code: int | None
    first: int
    next: int
    output: str
    info: dict[str, Any] | None = None


class Keeper:
    """The server's connection to the keeper of its state directory, made when first needed.

    Make it inside a running event loop, and `close` it there. Whatever asks the keeper raises
    `KeeperUnavailable` if there is none and none can be started. ``on_lost`` are called when the
    keeper has gone.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        ring_bytes: int,
        total_bytes: int,
        orphan_timeout: float,
        output_bytes: int,
    ) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self._state_dir = state_dir
        self._options: Fields = {
            "ring_bytes": ring_bytes,
            "total_bytes": total_bytes,
            "orphan_timeout": orphan_timeout,
            "output_bytes": output_bytes,
        }
        self._loop = asyncio.get_running_loop()
        self._link: KeeperLink | None = None
        self._linking = asyncio.Lock()
        self._kernels: dict[str, _Watched] = {}
        self._early: dict[tuple[str, int], int] = {}  # exit codes by kernel and pid
        self._processes: list[subprocess.Popen[bytes]] = []
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        *,
        ring_bytes: int,
        orphan_timeout: float,
        total_bytes: int = 2**28,
        output_bytes: int = 2**20,
    ) -> Keeper:
        """A connection that is made now. Raises `KeeperUnavailable`."""
        keeper = cls(
            state_dir,
            ring_bytes=ring_bytes,
            total_bytes=total_bytes,
            orphan_timeout=orphan_timeout,
            output_bytes=output_bytes,
        )
        await keeper.connect()
        return keeper

    @property
    def pid(self) -> int | None:
        """The keeper's process id while there is a connection."""
        return self._link.pid if self._link is not None else None

    async def connect(self) -> None:
        """Connect to the keeper, and start one if there is none. Raises `KeeperUnavailable`."""
        await self._linked()

    async def launch(
        self,
        kernel_id: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        output: Path,
    ) -> Kept:
        """Start a kernel's process, the leader of a session; what it writes goes to ``output``.

        A process that had this id and has ended is replaced. Raises `OSError` when there is
        nothing to execute.
        """
        fields = {
            "kernel_id": kernel_id,
            "command": list(command),
            "env": dict(env),
            "cwd": cwd,
            "output": str(output),
        }
        kept = msgspec.convert(await self._ask("launch", **fields), Kept)
        self._note(kept, anew=True)
        return kept

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Start a process that is no kernel, and nobody's but its own: its id and start time.

        It is the keeper's child, and so are processes of its own when their parents end. Raises
        `OSError` when there is nothing to execute.
        """
        answer = await self._ask("run", command=list(command), env=dict(env))
        return answer["pid"], answer["start_time"]

    async def adopt(
        self,
        kernel_id: str,
        pid: int,
        start_time: str,
        output: Path,
        info: Mapping[str, Any] | None,
    ) -> Kept | None:
        """Have the keeper watch a process that runs already; None if it is gone.

        Does nothing if it does so already. How it ends will not be known if it is not the
        keeper's child.
        """
        fields = {"pid": pid, "start_time": start_time, "output": str(output)}
        answer = await self._ask("adopt", kernel_id=kernel_id, **fields)
        if answer is None:
            watched = self._kernels.get(kernel_id)
            if watched is None or watched.pid != pid or not watched.exited.done():
                return None
            # A keeper that was replaced knew how it ended.
            return Kept(kernel_id, pid, start_time, watched.exited.result(), 1, 1, watched.output)
        kept = msgspec.convert(answer, Kept)
        self._note(kept)
        if info is not None and kept.info is None:
            await self.watch(kernel_id, info)
        return kept

    async def watch(self, kernel_id: str, info: Mapping[str, Any]) -> None:
        """Have the keeper subscribe to iopub at ``info`` and keep what it hears from then on."""
        plain = {name: _text(value) for name, value in info.items()}
        await self._ask("watch", kernel_id=kernel_id, info=plain)
        if kernel_id in self._kernels:
            self._kernels[kernel_id].info = plain

    async def kept(self) -> dict[str, Kept]:
        """All kernels that the keeper has, those that have ended among them, by their ids."""
        records = msgspec.convert(await self._ask("kept"), list[Kept])
        return {record.kernel_id: record for record in records}

    async def said(self, kernel_id: str, after: int) -> list[tuple[int, list[bytes]]]:
        """What the kernel said on iopub behind the index ``after``, as the frames received.

        That is one page of about a megabyte; an empty one is the end.
        """
        link = await self._linked()
        sizes, data = await link.ask({"ask": "said", "kernel_id": kernel_id, "after": after})
        page, start = [], 0
        for index, lengths in sizes:
            frames = []
            for length in lengths:
                frames.append(data[start : start + length])
                start += length
            page.append((index, frames))
        return page

    async def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group, by ourselves if there is no keeper.

        Raises `ProcessLookupError` when it has ended.
        """
        watched = self._kernels.get(kernel_id)
        if self._link is None and watched is not None and watched.pidfd is not None:
            signal_group(watched.pidfd, watched.pid, watched.start_time, number)
            return
        await self._ask("signal", kernel_id=kernel_id, number=int(number))

    def exited(self, kernel_id: str) -> asyncio.Future[int]:
        """Done with the exit code when the process has ended. Raises `KeyError` for no such one."""
        return self._kernels[kernel_id].exited

    async def tail(self, kernel_id: str) -> str:
        """The last lines that the process wrote, for people."""
        try:
            return str(await self._ask("tail", kernel_id=kernel_id))
        except (KeeperUnavailable, OSError):
            watched = self._kernels.get(kernel_id)
            return await asyncio.to_thread(_tail_of, watched.output) if watched is not None else ""

    async def forget(self, kernel_id: str) -> None:
        """Drop what is known of a kernel that has ended."""
        watched = self._kernels.pop(kernel_id, None)
        if watched is not None:
            watched.stop_watching()
            watched.exited.cancel()
        await self._ask("forget", kernel_id=kernel_id)

    async def end(self, kernel_id: str) -> None:
        """Kill what the keeper has of a kernel, if anything, and forget it.

        Raises `KeeperUnavailable`. Bounded by the time that a kill takes.
        """
        kept = (await self.kept()).get(kernel_id)
        if kept is None:
            return
        self._note(kept)
        if kept.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                await self.signal(kernel_id, signal.SIGKILL)
            await asyncio.wait({self.exited(kernel_id)}, timeout=KILL_SECONDS)
        await self.forget(kernel_id)

    async def close(self) -> None:
        """Close the connection. The keeper goes on while it has kernels."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait({self._recovery})
        if self._link is not None:
            await self._link.close()
            self._link = None
        for watched in self._kernels.values():
            watched.stop_watching()
            watched.exited.cancel()
        for process in self._processes:
            if not self._kernels:  # with nothing to keep it ends by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, CLOSE_SECONDS)
            if process.poll() is None:
                process.returncode = 0  # it outlives us, and nobody needs a warning of that

    # The connection

    async def _ask(self, ask: str, **fields: Any) -> Any:
        link = await self._linked()
        answer, _ = await link.ask({"ask": ask, **fields})
        return answer

    async def _linked(self) -> KeeperLink:
        if self._link is not None:
            return self._link
        async with self._linking:
            if self._link is None:
                if self._closed:
                    raise KeeperUnavailable("The server is shutting down")
                self._link = await self._connect()
            return self._link

    async def _connect(self) -> KeeperLink:
        try:
            async with asyncio.timeout(START_SECONDS):
                link, left = await self._find()
        except TimeoutError:
            text = f"The keeper of kernels was not ready within {START_SECONDS:g} s"
            raise KeeperUnavailable(text) from None
        except (OSError, TooOpen, Garbled) as error:
            raise KeeperUnavailable(f"The keeper of kernels cannot be used: {error}") from error
        try:
            await self._hand_over(link, left)
        except BaseException:
            await link.close()
            raise
        return link

    async def _hand_over(self, link: KeeperLink, left: Iterable[_Watched]) -> None:
        """Greet a keeper, and tell it of the kernels that another had."""
        answer, _ = await link.ask({"ask": "hello", "protocol": PROTOCOL, **self._options})
        records = msgspec.convert(answer, list[Kept])
        for record in records:
            self._note(record)
        for watched in left:
            self._kernels[watched.kernel_id] = watched
        known = {record.kernel_id for record in records}
        for kernel_id, watched in [*self._kernels.items()]:
            if kernel_id not in known and not watched.exited.done():
                await self._adopt_again(link, watched)

    async def _find(self) -> tuple[KeeperLink, list[_Watched]]:
        """A keeper of our version, and the kernels of one of another version that it replaces."""
        directory = await asyncio.to_thread(open_dir, self._state_dir)
        left: list[_Watched] = []
        try:
            while True:
                link = await KeeperLink.open(directory, self)
                if link is None:
                    await self._start()
                elif link.protocol == PROTOCOL:
                    return link, left
                else:
                    logger.warning("the keeper is of another version, and is replaced")
                    records = await link.drain()
                    left += [_Watched(msgspec.convert(record, Kept)) for record in records]
        finally:
            os.close(directory)

    async def _start(self) -> None:
        """Start a keeper; returns when it listens, or another does."""
        self._processes = [process for process in self._processes if process.poll() is None]
        ours, theirs = os.pipe()
        try:
            try:
                process = await asyncio.to_thread(execute_keeper, self._state_dir, theirs)
                self._processes.append(process)
            finally:
                os.close(theirs)
            told = await self._line(ours)
        finally:
            os.close(ours)
        if told == "ready":
            logger.info("process %d keeps the kernels", process.pid)
        elif told == "taken":  # it will soon listen, or end
            await asyncio.sleep(0.2)
        else:
            log = keeper_dir(self._state_dir) / "log"
            raise KeeperUnavailable(f"The keeper of kernels does not start: {told or f'see {log}'}")

    async def _line(self, descriptor: int) -> str:
        """The one line that a new keeper writes; empty if it ended without."""
        written = asyncio.Event()
        self._loop.add_reader(descriptor, written.set)
        try:
            await written.wait()
        finally:
            self._loop.remove_reader(descriptor)
        return os.read(descriptor, 4096).decode(errors="replace").strip()

    def on_event(self, fields: Fields) -> None:
        """The keeper tells something that was not asked for."""
        watched = self._kernels.get(str(fields.get("kernel_id")))
        if fields["event"] != "exited":
            return
        if watched is not None and watched.pid == fields["pid"]:
            watched.end(fields["code"])
        else:  # whoever launched it has not yet got its turn to read the answer
            self._early[fields["kernel_id"], fields["pid"]] = fields["code"]
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended."""
        if link is not self._link or self._closed:
            return
        self._link = None
        running = [watched for watched in self._kernels.values() if not watched.exited.done()]
        if running:
            logger.warning(
                "the keeper has ended; its %d kernels live on, and another is started", len(running)
            )
        for watched in running:
            watched.watch()
        for callback in self.on_lost:
            callback()
        if running:
            self._recovery = self._loop.create_task(self._recover(), name="new keeper")

    async def _recover(self) -> None:
        while True:
            try:
                await self._linked()
                return
            except KeeperUnavailable as error:
                logger.error("kernels have no keeper: %s", error.message)
                await asyncio.sleep(RETRY_SECONDS)

    # The kernels

    def _note(self, kept: Kept, *, anew: bool = False) -> None:
        watched = self._kernels.get(kept.kernel_id)
        if watched is None or anew or watched.pid != kept.pid:
            if watched is not None:
                watched.stop_watching()
            watched = self._kernels[kept.kernel_id] = _Watched(kept)
        watched.stop_watching()
        code = self._early.pop((kept.kernel_id, kept.pid), kept.exit_code)
        if code is not None:
            watched.end(code)

    async def _adopt_again(self, link: KeeperLink, watched: _Watched) -> None:
        """Tell a new keeper of a kernel that it has not."""
        who = {"kernel_id": watched.kernel_id}
        fields = {"pid": watched.pid, "start_time": watched.start_time, "output": watched.output}
        answer, _ = await link.ask({"ask": "adopt", **who, **fields})
        if answer is None:
            watched.end(UNKNOWN_EXIT)
            return
        watched.stop_watching()
        if watched.info is not None:
            await link.ask({"ask": "watch", **who, "info": watched.info})


def check_state_dir(settings: Settings) -> None:
    """Raise `TooOpen` if others could get at the state directory, which has the kernels' keys."""
    check_private(settings.state_dir)


def new_keeper(settings: Settings) -> Keeper | None:
    """The keeper as the options want it; None where kernels end with the server."""
    if not settings.keeps:
        if settings.on_shutdown == "keep":
            logger.warning(
                "kernels end with this server: %s (on_shutdown=stop says so)", settings.why_not_kept
            )
        return None
    network = network_file_system(settings.state_dir)
    if network is not None:
        logger.warning(
            "the state directory %s is on a network file system (%s), whose locks cannot be relied "
            "on: two servers could take the same kernels for theirs",
            settings.state_dir,
            network,
        )
    return Keeper(
        settings.state_dir,
        ring_bytes=settings.keeper_ring_bytes,
        total_bytes=settings.keeper_total_bytes,
        orphan_timeout=settings.orphan_timeout,
        output_bytes=settings.output_log_bytes,
    )


class _Watched:
    """A kernel's process; its end is told by the keeper or, while there is none, by a pidfd."""

    def __init__(self, kept: Kept) -> None:
        self.kernel_id = kept.kernel_id
        self.pid = kept.pid
        self.start_time = kept.start_time
        self.output = kept.output
        self.info = kept.info
        self.pidfd: int | None = None
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        if kept.exit_code is not None:
            self.end(kept.exit_code)

    def end(self, code: int) -> None:
        self.stop_watching()
        if not self.exited.done():
            self.exited.set_result(code)

    def watch(self) -> None:
        self.pidfd = open_process(self.pid, self.start_time)
        if self.pidfd is None:
            self.end(UNKNOWN_EXIT)
        else:
            self._loop.add_reader(self.pidfd, self._on_end)

    def stop_watching(self) -> None:
        if self.pidfd is not None:
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None

    def _on_end(self) -> None:
        assert self.pidfd is not None
        with contextlib.suppress(OSError):
            signal_group(self.pidfd, self.pid, self.start_time, 9)
        self.end(UNKNOWN_EXIT)


def _tail_of(path: str) -> str:
    """The end of a file of output that nobody reads for us."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


def _text(value: Any) -> Any:
    """jupyter_client has keys as bytes, a connection file as text."""
    return value.decode() if isinstance(value, bytes) else value

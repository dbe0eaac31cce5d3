"""The keeper, as the service sees it: it is found or started, and asked for processes.

The keeper (`app.keeper`) is the parent of local kernels, and hears all kernels. It outlives the
server, to keep them or to end them, and ends by itself. If it dies, its kernels live on: another is
started at once and watches them by their pids; only how they end is then known no more.

Whatever it is asked may go unanswered: it may hang, be killed, or be killed just before it says
what it has done. *That* a process has ended the server therefore sees by itself, and
waits for the keeper only to be told *how*. It signals by itself where the keeper does not. What may
have been launched without the answer arriving is ended, by this keeper or the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ....keeper.hearings import Heard
from ....keeper.output import OUTPUT_BYTES
from ....keeper.processes import (
    UNKNOWN_EXIT,
    Process,
    open_process,
    start_time,
)
from ....keeper.protocol import (
    PROTOCOL,
    Fields,
    Garbled,
    TooOpen,
    check_private,
    keeper_dir,
    open_dir,
)
from ....machine import network_file_system
from ....protocol import link as frames
from ....protocol.link import Bell, Said
from ....protocol.messages import Buffer, ClientMessage, Message
from ....settings import Settings
from ...errors import KeeperUnavailable, KernelUnreachable
from ...messages.line import Line
from .link import (
    ANSWER_SECONDS,
    KeeperLink,
    KeeperRefuses,
    LinkLost,
    execute_keeper,
)

__all__ = ["Keeper", "Kept", "check_state_dir", "new_keeper"]

logger = logging.getLogger(__name__)

START_SECONDS: Final = 30.0
"""How long a keeper may take to start, and one that ends to be gone."""

CLOSE_SECONDS: Final = 2.0
"""How long one that is left with nothing to keep may take to end."""

ATTEMPTS: Final = 2
"""How often something is asked for if the connection ends before the answer."""

QUICK_SECONDS: Final = 2.0
"""How long the keeper may take for what can be had without it."""

EXIT_SECONDS: Final = 3.0
"""How much later than the end of a process the keeper may tell how it ended."""

PAUSE_SECONDS: Final = 0.05
"""Before another connection, if one ends while it is made."""

MAX_EARLY: Final = 256
"""Ends of processes that are remembered for whoever asks for them later; the oldest go first."""

KILL_SECONDS: Final = 5.0
"""How long a process that was killed may take to be gone."""

GRACE_SECONDS: Final = 2.0
"""How long the keeper waits for a server that it has lost and whose process it cannot see."""

SOON_SECONDS: Final = 1.0
"""How long after a connection was made another is, at the earliest, which nobody waits for."""

RETRY_SECONDS: Final = 5.0
"""When a keeper that could not be started is tried again, if kernels need it."""

MAX_NUMBER: Final = 2**48
"""No log comes near."""

TAIL_BYTES: Final = 8192
TAIL_LINES: Final = 12


class Kept(msgspec.Struct, frozen=True):
    """What the keeper knows of one kernel.

    ``start_time`` is opaque. ``exit_code`` is None while the process runs, minus the number of the
    signal that killed it, or `UNKNOWN_EXIT`. ``output`` is the file of what the process writes.
    """

    kernel_id: str
    pid: int
    start_time: str
    exit_code: int | None
    output: str


class Keeper:
    """The server's connection to the keeper of its state directory, made when first needed.

    Make it inside a running event loop, and `close` it there. Whatever asks the keeper raises
    `KeeperUnavailable` if there is none and none can be started. ``on_lost`` are called when the
    keeper has gone. Its kernels outlive this process by ``orphan_timeout`` seconds; if that is
    None, they end with it, and the directories ``own`` go then.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        log_bytes: int = 2**28,
        log_total_bytes: int = 2**32,
        log_age: float = 86400.0,
        orphan_timeout: float | None,
        output_bytes: int = 2**20,
        own: Sequence[Path] = (),
    ) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self._state_dir = state_dir
        self._options: Fields = {
            "log_bytes": log_bytes,
            "log_total_bytes": log_total_bytes,
            "log_age": log_age,
            "orphan_timeout": GRACE_SECONDS if orphan_timeout is None else orphan_timeout,
            "output_bytes": output_bytes,
        }
        self._lasts = orphan_timeout is not None
        if not self._lasts:
            pid = os.getpid()
            who = {"pid": pid, "start_time": start_time(pid)}
            self._options["server"] = {**who, "own": [str(directory) for directory in own]}
        self._loop = asyncio.get_running_loop()
        self._link: KeeperLink | None = None
        self._linking: asyncio.Task[KeeperLink] | None = None
        self._linked_at = -SOON_SECONDS
        self._kernels: dict[str, _Watched] = {}
        self._lines: dict[str, Line] = {}
        self._by_handle: dict[int, Line] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._dropped: dict[str, Fields] = {}  # requests, until a keeper says that it is done
        self._unheard: dict[int, Bell] = {}  # of kernels whose handles are not known yet
        self._early: dict[str, tuple[int, int]] = {}  # pids and exit codes
        # Requests to end something, by what that is, until a keeper has said that it is done.
        self._unwanted: dict[tuple[str, str | int], Fields] = {}
        self._ends: set[asyncio.Future[Any]] = set()  # the answers to those that were told
        self._processes: list[subprocess.Popen[bytes]] = []
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, state_dir: Path, **options: Any) -> Keeper:
        """A connection that is made now. Raises `KeeperUnavailable`."""
        keeper = cls(state_dir, **options)
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

        A process that had this id and has ended is replaced. Raises `OSError` or `ValueError` when
        there is nothing to execute. Whatever is raised, no process was started, or it is ended.
        """
        if not command:
            raise ValueError("there is no command to execute")
        fields = {"command": list(command), "env": dict(env), "cwd": cwd, "output": str(output)}
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(LinkLost):
                return await self._launch(kernel_id, fields)
        return await self._launch(kernel_id, fields)

    async def _launch(self, kernel_id: str, fields: Fields) -> Kept:
        link = await self._linked()
        launch = secrets.token_hex(16)
        try:
            answer, _ = await link.ask(
                {"ask": "launch", "kernel_id": kernel_id, "launch": launch, **fields}
            )
        except (OSError, ValueError, KeeperRefuses):
            raise
        except BaseException:
            # It may have been launched, or will be. Whoever asks again, does so behind this.
            self._end(kernel_id, launch=launch)
            raise
        kept = msgspec.convert(answer, Kept)
        self._note(kept, anew=True)
        return kept

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Start a process that is no kernel, and nobody's but its own: its id and start time.

        It is the keeper's child, and so are processes of its own when their parents end. Raises
        `OSError` when there is nothing to execute.
        """
        answer, _ = await self._ask("run", command=list(command), env=dict(env))
        return answer["pid"], answer["start_time"]

    async def adopt(self, kernel_id: str, pid: int, start_time: str, output: Path) -> Kept | None:
        """Have the keeper watch a process that runs already; None if it is gone.

        Does nothing if it does so already. How it ends will not be known if it is not the
        keeper's child.
        """
        fields: Fields = {"pid": pid, "start_time": start_time, "output": str(output)}
        answer, _ = await self._ask("adopt", kernel_id=kernel_id, **fields)
        if answer is None:
            watched = self._kernels.get(kernel_id)
            if watched is None or watched.pid != pid or not watched.exited.done():
                return None
            # A keeper that was replaced knew how it ended.
            return Kept(kernel_id, pid, start_time, watched.exited.result(), watched.output)
        kept = msgspec.convert(answer, Kept)
        self._note(kept)
        return kept

    # What kernels say, and are asked (app.managers.messages.line.Hearer)

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """Have the keeper open a kernel's log, and sockets to its process if there is ``info``.

        Raises `KernelUnreachable` where that is refused.
        """
        plain = None if info is None else {name: _text(value) for name, value in info.items()}
        fields: Fields = {"session": line.session, "epoch": line.epoch, "info": plain}
        fields["known"] = line.known
        try:
            answer, _ = await self._ask(
                "hear", kernel_id=line.kernel_id, directory=str(directory), anew=anew, **fields
            )
        except KeeperRefuses as error:
            raise KernelUnreachable(str(error)) from error
        heard = msgspec.convert(answer, Heard)
        self._put_line(line, heard)
        line.remember(directory, plain)
        return heard

    def _put_line(self, line: Line, heard: Heard) -> None:
        self._dropped.pop(line.kernel_id, None)  # it was another kernel's
        self._lines[line.kernel_id] = self._by_handle[heard.handle] = line
        line.on_heard(heard)
        unsent, line.unsent = line.unsent, []
        for message, owner in unsent:
            self.request(line, message, owner)
        bell = self._unheard.pop(heard.handle, None)
        if bell is not None and bell.end >= heard.end and bell.taken >= heard.taken:
            line.on_bell(bell)

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request to a kernel; a keeper that is gone meanwhile does not get it.

        What is missing in the log then is sent again (`Traffic`). An answer to a prompt has no
        place there.
        """
        written = self._write(frames.pack_request(line.handle, message, owner))
        # Each closes a prompt, so there are no more of them than prompts that were open.
        if message.header.msg_type == "input_reply" and not written:
            line.unsent.append((message, owner))

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making to a kernel's log."""
        said = Said(line.handle, message.channel, flags, owner, message.frame)
        self._write(frames.pack_said(said))

    def _write(self, pieces: Sequence[Buffer]) -> bool:
        if self._link is not None and self._link.is_open:
            self._link.write(pieces)
            return True
        self._recover_soon()
        return False

    async def settle(self, kernel_id: str) -> bool:
        """Have what has arrived from a kernel in its log; whether there was anything."""
        answer, _ = await self._ask("settle", QUICK_SECONDS, kernel_id=kernel_id)
        return bool(answer)

    async def stdin_connected(self, kernel_id: str) -> bool:
        """Whether a kernel's input requests can arrive."""
        answer, _ = await self._ask("stdin", QUICK_SECONDS, kernel_id=kernel_id)
        return bool(answer)

    def opened(self, kernel_id: str) -> None:
        """The kernel is taken for ready."""
        self._tell({"ask": "open", "kernel_id": kernel_id})

    async def disconnect(self, kernel_id: str) -> None:
        """The kernel's process has ended."""
        await self._ask("disconnect", QUICK_SECONDS, kernel_id=kernel_id)

    def renew(self, kernel_id: str) -> None:
        """The newest file of a log cannot be read: it is to go on in another."""
        self._tell({"ask": "renew", "kernel_id": kernel_id})

    def drop(self, kernel_id: str) -> None:
        """The kernel is gone, and its log goes with it: now, or when there is a keeper again."""
        line = self._lines.pop(kernel_id, None)
        if line is not None:
            self._by_handle.pop(line.handle, None)
        which = {} if line is None else {"directory": str(line.directory)}
        self._dropped[kernel_id] = {"ask": "drop", "kernel_id": kernel_id, **which}
        if self._link is not None and self._link.is_open:
            self._tell_drop(self._link, kernel_id)
        else:
            self._recover_soon()

    def _tell_drop(self, link: KeeperLink, kernel_id: str) -> None:
        def on_answer(answer: asyncio.Future[Any]) -> None:
            error = answer.exception()
            if isinstance(error, LinkLost):
                return
            if self._dropped.get(kernel_id) is asked:
                del self._dropped[kernel_id]
            if error is not None:
                logger.error("kernel %s: its log stays: %s", kernel_id, error)

        asked = self._dropped[kernel_id]
        link.tell(asked).add_done_callback(on_answer)

    def _tell(self, fields: Fields) -> None:
        if self._link is not None and self._link.is_open:
            self._link.tell(fields)

    def on_bells(self, data: bytes) -> None:
        """The keeper tells how far logs go. Raises `Garbled` for what cannot be.

        Where it goes on is agreed upon anew then, by the next connection.
        """
        for bell in frames.unpack_bells(data):
            line = self._by_handle.get(bell.handle)
            if line is not None:
                if not line.known[0] <= bell.end[0] < MAX_NUMBER or bell.first > bell.end:
                    raise Garbled(
                        f"kernel {line.kernel_id}: its log, which went to number {line.known[0]}, "
                        f"is said to go from {bell.first[0]} to {bell.end[0]}"
                    )
                line.on_bell(bell)
                continue
            self._unheard[bell.handle] = bell  # its answer may have come just before
            if len(self._unheard) > MAX_EARLY:
                del self._unheard[next(iter(self._unheard))]

    async def kept(self) -> dict[str, Kept]:
        """All kernels that the keeper has, those that have ended among them, by their ids."""
        answer, _ = await self._ask("kept")
        records = msgspec.convert(answer, list[Kept])
        return {record.kernel_id: record for record in records}

    async def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group, by ourselves if the keeper does not.

        Raises `ProcessLookupError` when it has ended. Bounded by `QUICK_SECONDS`.
        """
        watched = self._kernels.get(kernel_id)
        fields: Fields = {"kernel_id": kernel_id, "number": int(number)}
        if watched is None:
            await self._ask("signal", **fields)
            return
        if self._link is not None:
            try:
                await self._link.ask({"ask": "signal", **fields}, QUICK_SECONDS)
                return
            except ProcessLookupError:
                raise
            except (KeeperUnavailable, OSError) as error:
                logger.warning(
                    "kernel %s is signalled without its keeper: %s",
                    kernel_id,
                    error,
                    extra={"kernel_id": kernel_id},
                )
        watched.signal(number)

    def exited(self, kernel_id: str) -> asyncio.Future[int]:
        """Done with the exit code when the process has ended. Raises `KeyError` for no such one."""
        return self._kernels[kernel_id].exited

    async def tail(self, kernel_id: str) -> str:
        """The last lines that the process wrote, for people."""
        try:
            answer, _ = await self._ask("tail", QUICK_SECONDS, kernel_id=kernel_id)
            return str(answer)
        except (KeeperUnavailable, OSError):
            watched = self._kernels.get(kernel_id)
            return await asyncio.to_thread(_tail_of, watched.output) if watched is not None else ""

    async def forget(self, kernel_id: str, pid: int | None = None) -> None:
        """Drop what is known of a kernel, and end its process if that still runs.

        Or of its process ``pid``, which the keeper may know of although its answer did not arrive.
        Returns at once, and raises nothing: a keeper that cannot be told now is told later.
        """
        self._early.pop(kernel_id, None)
        watched = self._kernels.get(kernel_id)
        if watched is not None and pid in (None, watched.pid):
            del self._kernels[kernel_id]
            pid = watched.pid
            with contextlib.suppress(OSError):
                watched.signal(signal.SIGKILL)
            watched.stop_watching()
            watched.exited.cancel()
        if pid is not None:
            self._end(kernel_id, pid=pid)

    def _end(self, kernel_id: str, **which: str | int) -> None:
        """Have what nobody wants ended, however late the keeper reads this, or by the next one."""
        (value,) = which.values()
        self._unwanted[kernel_id, value] = {"ask": "end", "kernel_id": kernel_id, **which}
        if self._link is not None and self._link.is_open:
            self._tell_end(self._link, (kernel_id, value))
        else:
            self._recover_soon()

    def _tell_end(self, link: KeeperLink, what: tuple[str, str | int]) -> asyncio.Future[Any]:
        def on_answer(answer: asyncio.Future[Any]) -> None:
            error = answer.exception()
            if isinstance(error, OSError):  # it is short of something now
                self._loop.call_later(RETRY_SECONDS, self._end_again, what)
            elif not isinstance(error, LinkLost):
                self._unwanted.pop(what, None)

        answer = link.tell(self._unwanted[what])
        answer.add_done_callback(on_answer)
        self._ends.add(answer)
        answer.add_done_callback(self._ends.discard)
        return answer

    def _end_again(self, what: tuple[str, str | int]) -> None:
        if what in self._unwanted and self._link is not None and self._link.is_open:
            self._tell_end(self._link, what)

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
        """Close the connection. The keeper goes on while it has kernels, unless they end now."""
        self._closed = True
        tasks = [task for task in (self._recovery, self._linking, *self._late) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._ends:  # a keeper whose answer meets a closed connection reads on no more
            await asyncio.wait(self._ends, timeout=CLOSE_SECONDS)
        if self._link is not None:
            if not self._lasts:
                with contextlib.suppress(KeeperUnavailable, OSError):
                    await self._link.ask({"ask": "stop"}, QUICK_SECONDS)
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

    async def _ask(
        self, ask: str, seconds: float | None = None, **fields: Any
    ) -> tuple[Any, bytes]:
        """What `KeeperLink.ask` does, of what does no harm if it is done twice.

        Of an `OSError` that is told, only `ProcessLookupError` is raised as it is.
        """
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(LinkLost):
                return await self._ask_once({"ask": ask, **fields}, seconds)
        return await self._ask_once({"ask": ask, **fields}, seconds)

    async def _ask_once(self, fields: Fields, seconds: float | None) -> tuple[Any, bytes]:
        try:
            return await (await self._linked()).ask(fields, seconds)
        except ProcessLookupError:
            raise
        except OSError as error:  # no descriptors are left, for one
            raise KeeperRefuses(str(error)) from error

    async def _linked(self) -> KeeperLink:
        link = self._link
        if link is not None and link.is_open:
            return link
        if link is not None:
            await link.close()  # it has ended, which its reader has not yet seen
        if self._closed:
            raise KeeperUnavailable("The server is shutting down")
        if self._linking is None:
            self._linking = self._loop.create_task(self._connect(), name="link to the keeper")
            self._linking.add_done_callback(self._on_linked)
        # It is for all who wait: one that is cancelled does not end it for the others.
        return await asyncio.shield(self._linking)

    def _on_linked(self, linking: asyncio.Task[KeeperLink]) -> None:
        self._linking = None
        if not linking.cancelled():
            linking.exception()  # whoever waited for it may have been cancelled

    async def _connect(self) -> KeeperLink:
        pause = PAUSE_SECONDS
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    link = await self._find()
                    if await self._greet(link):
                        return link
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, SOON_SECONDS)
        except TimeoutError:
            text = f"The keeper of kernels was not ready within {START_SECONDS:g} s"
            raise KeeperUnavailable(text) from None
        except (OSError, TooOpen, Garbled, msgspec.MsgspecError) as error:
            raise KeeperUnavailable(f"The keeper of kernels cannot be used: {error}") from error

    async def _greet(self, link: KeeperLink) -> bool:
        """Use a connection from now on; False if it ends meanwhile, as it may at any time."""
        try:
            heard = await self._hand_over(link)
        except LinkLost:
            await link.close()
            return False
        except BaseException:
            await link.close()
            raise
        if not link.is_open:
            return False
        self._link = link
        self._linked_at = self._loop.time()
        for line, its in heard:  # which send what the one before has not sent
            if self._lines.get(line.kernel_id) is line:
                self._put_line(line, its)
        for what in [*self._unwanted]:  # what was forgotten while it was greeted, too
            self._tell_end(link, what)
        for kernel_id in [*self._dropped]:
            self._tell_drop(link, kernel_id)
        return True

    async def _hand_over(self, link: KeeperLink) -> list[tuple[Line, Heard]]:
        """Greet a keeper, and tell it what another was to do, and which kernels that had.

        Returns how those are heard that another has heard.
        """
        answer, _ = await link.ask({"ask": "hello", "protocol": PROTOCOL, **self._options})
        for kernel_id in [*self._dropped]:  # before another has its id
            self._tell_drop(link, kernel_id)
        records = msgspec.convert(answer, list[Kept])
        ended = {what: self._tell_end(link, what) for what in [*self._unwanted]}
        if ended:
            _, late = await asyncio.wait(ended.values(), timeout=ANSWER_SECONDS)
            if late:
                raise KeeperUnavailable("The keeper of kernels does not answer")
        gone = {kernel_id for (kernel_id, _), done in ended.items() if _was_done(done)}
        records = [
            record
            for record in records
            if record.kernel_id not in gone
            and (record.kernel_id, record.pid) not in self._unwanted  # forgotten meanwhile
        ]
        for record in records:
            self._note(record)
        known = {record.kernel_id for record in records}
        for kernel_id, watched in [*self._kernels.items()]:
            wanted = self._kernels.get(kernel_id) is watched  # what is awaited here takes its time
            if wanted and kernel_id not in known and not watched.exited.done():
                await self._adopt_again(link, watched)
        return await self._hear_again(link)

    def _hear_late(self, kernel_id: str) -> None:
        """Try once more to have a kernel heard that was refused."""
        if kernel_id in self._lines and not self._closed:
            task = self._loop.create_task(self._try_to_hear(kernel_id), name="hear a kernel late")
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _try_to_hear(self, kernel_id: str) -> None:
        line = self._lines.get(kernel_id)
        if line is None or self._by_handle.get(line.handle) is line:
            return
        try:
            await self.hear(line, line.directory, line.info, anew=False)
        except (KeeperUnavailable, KernelUnreachable) as error:
            logger.error(
                "kernel %s is not heard: %s",
                kernel_id,
                error.message,
                extra={"kernel_id": kernel_id},
            )
            self._loop.call_later(RETRY_SECONDS, self._hear_late, kernel_id)

    async def _hear_again(self, link: KeeperLink) -> list[tuple[Line, Heard]]:
        """Have a new keeper hear what the one before it has heard."""
        self._by_handle.clear()
        self._unheard.clear()
        found = []
        for kernel_id, line in [*self._lines.items()]:
            fields: Fields = {"session": line.session, "epoch": line.epoch, "info": line.info}
            fields["known"] = line.known
            asked = {"ask": "hear", "kernel_id": kernel_id, "directory": str(line.directory)}
            try:
                answer, _ = await link.ask({**asked, "anew": False, **fields})
            except (KeeperRefuses, OSError) as error:
                logger.error(
                    "kernel %s is not heard: %s", kernel_id, error, extra={"kernel_id": kernel_id}
                )
                self._loop.call_later(RETRY_SECONDS, self._hear_late, kernel_id)
                continue
            found.append((line, msgspec.convert(answer, Heard)))
        return found

    async def _find(self) -> KeeperLink:
        """A keeper of our version; one of another version is replaced, and its kernels noted."""
        directory = await asyncio.to_thread(open_dir, self._state_dir)
        try:
            while True:
                link = await KeeperLink.open(directory, keeper_dir(self._state_dir), self)
                if link is None:
                    await self._start()
                elif link.protocol == PROTOCOL:
                    return link
                else:
                    text = "the keeper is of another version (%d, not %d), and is replaced"
                    logger.warning(text, link.protocol, PROTOCOL)
                    for record in await link.drain():
                        self._note(msgspec.convert(record, Kept))
        finally:
            os.close(directory)

    async def _start(self) -> None:
        """Start a keeper; returns when it listens, or another does."""
        self._processes = [process for process in self._processes if process.poll() is None]
        ours, theirs = os.pipe()
        try:
            execution = self._loop.run_in_executor(None, self._execute, theirs)
            process = await asyncio.shield(execution)  # it goes on, and needs its descriptor
            told = await self._line(ours)
        finally:
            os.close(ours)
        if told == "ready":
            logger.info("process %d is the keeper of the kernels", process.pid)
        elif told == "taken":  # it will soon listen, or end
            await asyncio.sleep(0.2)
        else:
            log = keeper_dir(self._state_dir) / "log"
            raise KeeperUnavailable(f"The keeper of kernels does not start: {told or f'see {log}'}")

    def _execute(self, output: int) -> subprocess.Popen[bytes]:
        try:
            process = execute_keeper(self._state_dir, output)
            self._processes.append(process)
            return process
        finally:
            os.close(output)

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
        if fields["event"] == "malformed":
            line = self._lines.get(fields["kernel_id"])
            if line is not None:
                line.on_malformed(fields["count"], fields["channel"], fields["reason"])
        if fields["event"] != "exited":
            return
        watched = self._kernels.get(str(fields.get("kernel_id")))
        if watched is not None and watched.pid == fields["pid"]:
            watched.end(fields["code"])
        else:  # whoever launched it has not yet got its turn to read the answer
            self._early[fields["kernel_id"]] = (fields["pid"], fields["code"])
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
                "the connection to the keeper has ended; its %d kernels live on", len(running)
            )
        for callback in self.on_lost:
            callback()
        if running or self._lines or self._unwanted or self._dropped:
            self._recover_soon()

    def _recover_soon(self) -> None:
        if not self._closed and (self._recovery is None or self._recovery.done()):
            self._recovery = self._loop.create_task(self._recover(), name="new keeper")

    async def _recover(self) -> None:
        while True:
            try:
                # One that is sent away as soon as it has come: it would be for ever.
                await asyncio.sleep(self._linked_at + SOON_SECONDS - self._loop.time())
                link = await self._linked()
                if link.is_open:
                    return
                await asyncio.sleep(PAUSE_SECONDS)  # it has ended before anybody could use it
            except KeeperUnavailable as error:
                logger.error("kernels have no keeper: %s", error.message)
                await asyncio.sleep(RETRY_SECONDS)

    # The kernels

    def _note(self, kept: Kept, *, anew: bool = False) -> None:
        watched = self._kernels.get(kept.kernel_id)
        if watched is None or anew or watched.pid != kept.pid:
            if watched is not None:
                watched.end(UNKNOWN_EXIT)
            watched = self._kernels[kept.kernel_id] = _Watched(kept)
        pid, code = self._early.pop(kept.kernel_id, (kept.pid, kept.exit_code))
        if pid == kept.pid and code is not None:
            watched.end(code)

    async def _adopt_again(self, link: KeeperLink, watched: _Watched) -> None:
        """Tell a new keeper of a kernel that it has not; one that it refuses is no end of all."""
        who = {"kernel_id": watched.kernel_id}
        fields = {"pid": watched.pid, "start_time": watched.start_time, "output": watched.output}
        try:
            answer, _ = await link.ask({"ask": "adopt", **who, **fields})
            if answer is None:
                watched.end(UNKNOWN_EXIT)
        except (KeeperRefuses, OSError) as error:
            logger.error(
                "kernel %s is not kept: %s",
                watched.kernel_id,
                error,
                extra={"kernel_id": watched.kernel_id},
            )


def check_state_dir(settings: Settings) -> None:
    """Raise `TooOpen` if others could get at the state directory, which has the kernels' keys."""
    check_private(settings.state_dir)


def new_keeper(settings: Settings, directory: Path, own: Sequence[Path]) -> Keeper:
    """The keeper as the options want it, in this directory; ``own`` goes with the server."""
    network = network_file_system(settings.state_dir)
    if not settings.keeps and settings.on_shutdown == "keep":
        logger.warning(
            "kernels end with this server: %s (on_shutdown=stop says so)", settings.why_not_kept
        )
    elif settings.keeps and network is not None:
        logger.warning(
            "the state directory %s is on a network file system (%s), whose locks cannot be relied "
            "on: two servers could take the same kernels for theirs",
            settings.state_dir,
            network,
        )
    return Keeper(
        directory,
        log_bytes=settings.log_bytes,
        log_total_bytes=settings.log_total_bytes,
        log_age=settings.log_age,
        orphan_timeout=settings.orphan_timeout if settings.keeps else None,
        output_bytes=OUTPUT_BYTES,
        own=own,
    )


class _Watched:
    """A kernel's process. The keeper tells how it ends; if it does not, `Process` tells that."""

    def __init__(self, kept: Kept) -> None:
        self.kernel_id = kept.kernel_id
        self.pid = kept.pid
        self.start_time = kept.start_time
        self.output = kept.output
        self._process: Process | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        if kept.exit_code is not None:
            self.end(kept.exit_code)
        else:
            self._watch()

    def end(self, code: int) -> None:
        self.stop_watching()
        if not self.exited.done():
            self.exited.set_result(code)

    def signal(self, number: int) -> None:
        """Signal its process group. Raises `ProcessLookupError` when it has ended."""
        if self._process is None:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        self._process.signal_group(number)

    def stop_watching(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._process is not None:
            self._process.close()
            self._process = None

    def _watch(self) -> None:
        try:
            self._process = open_process(self.pid, self.start_time)
        except OSError as error:  # no descriptors are left
            logger.error("process %d is watched by the keeper alone: %s", self.pid, error)
            return
        if self._process is None:
            self._on_end()
        else:
            self._process.watch(self._on_end)

    def _on_end(self) -> None:
        """It has ended. The keeper has seen that, too, and may be about to tell how."""
        self._patience = self._loop.call_later(EXIT_SECONDS, self._end_unknown)

    def _end_unknown(self) -> None:
        with contextlib.suppress(OSError):
            self.signal(signal.SIGKILL)
        self.end(UNKNOWN_EXIT)


def _was_done(answer: asyncio.Future[tuple[Any, bytes]]) -> bool:
    return answer.exception() is None and answer.result()[0] is True


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

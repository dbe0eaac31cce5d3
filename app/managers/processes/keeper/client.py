"""One keeper, as the service sees it: it is found or started, and asked for processes.

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
import logging
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Unpack

import msgspec

from ....keeper.hearings import Heard
from ....keeper.limits import NO_LIMITS, ProcessLimits
from ....keeper.processes import UNKNOWN_EXIT
from ....keeper.protocol import Fields
from ....log_formats import about
from ....protocol.messages import ClientMessage, Message
from ...errors import KeeperUnavailable
from ...messages.line import Line
from .claims import kept_of
from .connection import ATTEMPTS, Connection
from .errands import Errands
from .greeting import TELLS_HEARD, KeeperOptions, ReplicaTerms, greeted_by, hello_fields
from .kept import Kept, Processes, ProcessUsage, WatchedProcess
from .lines import Lines
from .link import KeeperLink, KeeperRefuses, LinkLost
from .places import CLOSE_SECONDS, KeeperGone, NewestPlace, Place

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

QUICK_SECONDS: Final = 2.0
"""How long the keeper may take for what can be had without it."""

KILL_SECONDS: Final = 5.0
"""How long a process that was killed may take to be gone."""


class Keeper:
    """The server's connection to one keeper of its state directory, made when first needed.

    Make it inside a running event loop, and `close` it there. Whatever asks the keeper raises
    `KeeperUnavailable` if there is none and none can be started. ``on_lost`` are called when the
    keeper has gone. ``on_empty`` is called when a kernel is gone and no other is left, and
    ``on_gone`` when there is no keeper at ``place`` any more, nor will be. ``on_fenced`` is called
    with the id of a kernel that another replica has.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        terms: ReplicaTerms | None = None,
        place: Place | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self.on_empty: Callable[[], None] = lambda: None
        self.on_gone: Callable[[], None] = lambda: None
        self.on_fenced: Callable[[str], None] = lambda _: None
        self._options = hello_fields(options, terms)
        self._terms = terms
        self._lasts = options["orphan_timeout"] is not None
        self._place = place or NewestPlace(state_dir)
        self._connection = Connection(self, self._place.patience)
        self.problem = self._connection.problem
        """As `Connection.problem`."""
        self._errands = Errands(self._connection, self._look_whether_empty)
        self._processes = Processes()
        self._lines = Lines(self._connection)
        self._heard: set[str] = set()  # kernels that the keeper heard when it was greeted
        self._has_greeted = False

    @property
    def pid(self) -> int | None:
        """The keeper's process id while there is a connection."""
        return self._connection.link.pid if self._connection.link is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether the keeper can be asked now."""
        return self._connection.open_link is not None

    async def connect(self) -> None:
        """Connect to the keeper, and start one if there is none. Raises `KeeperUnavailable`."""
        await self._connection.linked()

    def connect_soon(self) -> None:
        """Connect to the keeper as soon as can be, and try until that is done."""
        self._connection.recover_soon()

    def bound_logs(self, total: int) -> None:
        """Have the logs of all kernels of this keeper take so many bytes at most."""
        if self._options["log_total_bytes"] != total:
            self._options["log_total_bytes"] = total
            if (link := self._connection.open_link) is not None:
                link.tell(self._hello(link))

    async def launch(
        self,
        kernel_id: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        output: Path,
        limits: ProcessLimits = NO_LIMITS,
        **further: Any,
    ) -> Kept:
        """Start a kernel's process, the leader of a session; what it writes goes to ``output``.

        A process that had this id and has ended is replaced. ``further`` are fields of the request
        that the keeper must not ignore (`CAN`). Raises `OSError` or `ValueError` when there is
        nothing to execute, and `IsolationUnavailable` if the keeper does not know such a field.
        Whatever is raised, no process was started, or it is ended.
        """
        if not command:
            raise ValueError("there is no command to execute")
        fields = {"command": list(command), "env": dict(env), "cwd": cwd, "output": str(output)}
        fields |= further
        # Another keeper may be asked, while the one before has launched the process. Each attempt
        # has a name of its own: what the first has led to is ended when the next is greeted, before
        # that launches anything.
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(LinkLost):
                return await self._launch(kernel_id, fields, limits)
        return await self._launch(kernel_id, fields, limits)

    async def _launch(self, kernel_id: str, fields: Fields, limits: ProcessLimits) -> Kept:
        link = await self._connection.linked()
        link.check_heeds(fields)
        launch = secrets.token_hex(16)
        try:
            answer, _ = await link.ask(
                {"ask": "launch", "kernel_id": kernel_id, "launch": launch, **fields}
                | {"limits": msgspec.to_builtins(limits)}
            )
            kept = kept_of(answer, kernel_id)
        except (OSError, ValueError, KeeperRefuses):
            raise
        except BaseException:
            # No answer, or none that makes sense, or the caller was cancelled. It may have been
            # launched, or will be. Whoever asks again does so behind this.
            self._errands.end(kernel_id, launch=launch)
            raise
        self._processes.note(kept, anew=True, limits=limits)
        return kept

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Start a process that is no kernel; returns its id and its start time.

        It is the keeper's child, and so are its descendants when their parents end. Raises
        `OSError` when there is nothing to execute.
        """
        answer, _ = await self._connection.ask("run", command=list(command), env=dict(env))
        return answer["pid"], answer["start_time"]

    async def adopt(
        self,
        kernel_id: str,
        pid: int,
        start_time: str,
        output: Path,
        limits: ProcessLimits = NO_LIMITS,
    ) -> Kept | None:
        """Have the keeper watch a process that runs already; None if it is gone.

        Does nothing if it does so already. How it ends will not be known if it is not the
        keeper's child.
        """
        fields: Fields = {"pid": pid, "start_time": start_time, "output": str(output)}
        fields["limits"] = msgspec.to_builtins(limits)
        answer, _ = await self._connection.ask("adopt", kernel_id=kernel_id, **fields)
        if answer is None:
            # Read behind the answer: a keeper that was greeted while this waited may have told of
            # the end.
            watched = self._processes.get(kernel_id)
            if watched is None or watched.pid != pid or not watched.exited.done():
                return None
            # A keeper that was replaced knew how it ended.
            return Kept(kernel_id, pid, start_time, watched.exited.result(), watched.output)
        kept = kept_of(answer, kernel_id)
        self._processes.note(kept, limits=limits)
        return kept

    # What kernels say, and are asked (app.managers.messages.line.Hearer)

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """Have the keeper open a kernel's log, and sockets to its process if there is ``info``.

        Raises `KernelUnreachable` where that is refused.
        """
        heard = await self._lines.hear(line, directory, info, anew=anew)
        # The log that is to be removed was another kernel's, with the same id. The keeper removes
        # that first: it was told so before it was asked to hear this one.
        self._errands.keep(line.kernel_id)
        return heard

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request to a kernel."""
        self._lines.request(line, message, owner)

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making to a kernel's log."""
        self._lines.say(line, message, owner, flags)

    async def settle(self, kernel_id: str) -> bool:
        """Have what has arrived from a kernel in its log; whether there was anything."""
        return bool(await self._ask("settle", kernel_id))

    async def stdin_connected(self, kernel_id: str) -> bool:
        """Whether a kernel's input requests can arrive."""
        return bool(await self._ask("stdin", kernel_id))

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """The kernel is taken for ready; its log has this share."""
        self._connection.tell({"ask": "open", "kernel_id": kernel_id, "share": share})

    async def disconnect(self, kernel_id: str) -> None:
        """The kernel's process has ended."""
        await self._ask("disconnect", kernel_id)

    def renew(self, kernel_id: str) -> None:
        """The newest file of a log cannot be read: it is to go on in another."""
        self._connection.tell({"ask": "renew", "kernel_id": kernel_id})

    def drop(self, kernel_id: str) -> None:
        """The kernel is gone, and its log goes with it: now, or when there is a keeper again."""
        line = self._lines.pop(kernel_id)
        self._heard.discard(kernel_id)
        which = {} if line is None else {"directory": str(line.directory)}
        self._errands.drop(kernel_id, **which)

    def let_go(self, kernel_id: str) -> None:
        """Leave a kernel, its log and its process to another replica."""
        self._lines.pop(kernel_id)
        self._heard.discard(kernel_id)
        self._processes.let_go(kernel_id)

    # The kernels' processes

    async def kept(self) -> dict[str, Kept]:
        """All kernels that the keeper has, those that have ended among them, by their ids."""
        answer, _ = await self._connection.ask("kept")
        return {record.kernel_id: record for record in msgspec.convert(answer, list[Kept])}

    async def end_strays(self, dead: Sequence[str], known: Sequence[str]) -> None:
        """As `Keepers.end_strays`. Raises `KeeperUnavailable`."""
        await self._connection.ask("strays", dead=[*dead], known=[*known])

    async def has(self, kernel_id: str) -> bool:
        """Whether this keeper has a kernel's process, or hears it. Raises `KeeperUnavailable`."""
        link = await self._connection.linked()
        is_left = self._errands.is_dropped(kernel_id)  # it has the log until it answers
        if self._processes.get(kernel_id) or kernel_id in self._lines or is_left:
            return True
        is_alone = self._terms is None  # other replicas launch kernels after the greeting, too
        if kernel_id in self._heard or (is_alone and link.protocol >= TELLS_HEARD):
            return kernel_id in self._heard
        try:
            await self.stdin_connected(kernel_id)
        except KeeperRefuses as error:
            if "is not heard" not in error.message:
                raise
            return not is_alone and kernel_id in await self.kept()
        return True

    async def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group, by ourselves if the keeper does not.

        Raises `ProcessLookupError` when it has ended. Bounded by `QUICK_SECONDS`.
        """
        watched = self._processes.get(kernel_id)
        fields: Fields = {"kernel_id": kernel_id, "number": int(number)}
        if watched is None:
            await self._connection.ask("signal", **fields)
            return
        # Not `linked`: a signal is not to wait for a keeper that has to be started first. And asked
        # once: the process may have ended, and another have come, by the time that a second keeper
        # is asked.
        if self._connection.link is not None:
            try:
                await self._connection.link.ask({"ask": "signal", **fields}, QUICK_SECONDS)
                return
            except ProcessLookupError:
                raise
            except (KeeperUnavailable, OSError) as error:
                log = about(logger, kernel_id=kernel_id)
                log.warning("kernel %s is signalled without its keeper: %s", kernel_id, error)
        # Of the process that there was when this began: if the kernel has another by now, this one
        # has ended, and `ProcessLookupError` says so. No other process can have its number.
        watched.signal(number)

    async def usage(self, kernel_id: str) -> ProcessUsage | None:
        """What a kernel's processes use now; None where the keeper has no process of it."""
        answer = await self._ask("usage", kernel_id)
        return None if answer is None else msgspec.convert(answer, ProcessUsage)

    async def _ask(self, ask: str, kernel_id: str) -> Any:
        answer, _ = await self._connection.ask(ask, QUICK_SECONDS, kernel_id=kernel_id)
        return answer

    def was_out_of_memory(self, kernel_id: str) -> bool:
        """Whether the process, which has ended, was killed for want of memory."""
        return (watched := self._processes.get(kernel_id)) is not None and watched.oom

    def exited(self, kernel_id: str) -> asyncio.Future[int]:
        """Done with the exit code when the process has ended. Raises `KeyError` for no such one."""
        if (watched := self._processes.get(kernel_id)) is None:
            raise KeyError(kernel_id)
        return watched.exited

    async def tail(self, kernel_id: str) -> str:
        """The last lines that the process wrote, for people."""
        try:
            return str(await self._ask("tail", kernel_id))
        except (KeeperUnavailable, OSError):
            watched = self._processes.get(kernel_id)
            return await asyncio.to_thread(watched.tail) if watched is not None else ""

    async def forget(self, kernel_id: str, pid: int | None = None) -> None:
        """Drop what is known of a kernel, and end its process if that still runs.

        Or of its process ``pid``, which the keeper may know of although its answer did not arrive.
        Returns at once, and raises nothing: a keeper that cannot be told now is told later.
        """
        pid = self._processes.forget(kernel_id, pid)
        if pid is not None:
            self._errands.end(kernel_id, pid=pid)

    async def end(self, kernel_id: str) -> None:
        """Kill what the keeper has of a kernel, if anything, and forget it.

        Raises `KeeperUnavailable`. Bounded by the time that a kill takes.
        """
        kept = (await self.kept()).get(kernel_id)
        if kept is None:
            return
        self._processes.note(kept)
        exited = self.exited(kernel_id)  # before the kernel can be forgotten, which cancels this
        if kept.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                await self.signal(kernel_id, signal.SIGKILL)
            await asyncio.wait({exited}, timeout=KILL_SECONDS)
        await self.forget(kernel_id)

    @property
    def is_empty(self) -> bool:
        """Whether the keeper is known to have no kernel, and to have nothing to do."""
        kernels = len(self._processes) + len(self._lines) + len(self._heard)
        return self._has_greeted and kernels + len(self._errands) == 0

    def _look_whether_empty(self) -> None:
        if self.is_empty:
            self.on_empty()

    def take_from(self, other: Keeper, found: Sequence[Kept]) -> asyncio.Task[None]:
        """Have all kernels of another keeper, which is gone, and the processes that were ``found``.

        They are this keeper's at once. The task is done when the keeper knows the processes and
        hears the kernels; it raises `KeeperUnavailable`, and the next connection makes up for that.
        """
        # Nothing is awaited in here: whoever asks for a kernel finds it at one keeper or at the
        # other.
        self._errands.take_from(other._errands, self._lines)
        for kept in found:
            is_known = other._processes.get(kept.kernel_id) is not None
            if not (is_known or self._errands.is_unwanted(kept.kernel_id, kept.pid)):
                other._processes.note(kept)
        self._lines.take_from(other._lines)
        taken = self._processes.take_from(other._processes)
        loop = asyncio.get_running_loop()
        return loop.create_task(self._take(taken), name="kernels of another keeper")

    async def _take(self, taken: Sequence[WatchedProcess]) -> None:
        link = await self._connection.linked()
        # A link that is made only now tells all this in its greeting, and so does the one after it
        # if it ends meanwhile. What the keeper does already it does not do again.
        for watched in taken:
            await self._adopt_again(link, watched)
        self._errands.tell(link)
        await self._lines.hear_missing()

    async def close(self) -> None:
        """Close the connection. The keeper goes on while it has kernels, unless they end now."""
        await self._connection.close()
        await self._lines.close()
        # A keeper whose answer meets a closed connection reads on no more.
        await self._errands.answered(CLOSE_SECONDS)
        link, self._connection.link = self._connection.link, None
        if link is not None:
            if not self._lasts:
                with contextlib.suppress(KeeperUnavailable, OSError):
                    await link.ask({"ask": "stop"}, QUICK_SECONDS)
            await link.close()
        self._processes.close()
        await self._place.close(is_empty=not len(self._processes))

    async def find(self) -> KeeperLink:
        """As `ConnectionOwner.find`."""
        try:
            return await self._place.find(self, self._note_drained)
        except KeeperGone:
            self.on_gone()
            raise

    def _note_drained(self, records: Sequence[Any]) -> None:
        for record in records:
            self._processes.note(msgspec.convert(record, Kept))

    def _hello(self, link: KeeperLink) -> Fields:
        return {"ask": "hello", "protocol": link.protocol, **self._options}

    async def greet(self, link: KeeperLink) -> Callable[[], None]:
        """Greet a keeper, and tell it what another was to do, and which kernels that had."""
        link.term_of = None if self._terms is None else self._terms.term_of
        answer, _ = await link.ask(self._hello(link))
        greeted = greeted_by(link, answer, self._terms)
        # Told before anything else that is asked over this link: a kernel that has come anew under
        # the id of one that was dropped is heard behind the removal of that one's log.
        self._errands.tell_drops(link)
        self._has_greeted = True
        self._heard = {each for each in greeted.heard if not self._errands.is_dropped(each)}
        # From here on things go on beside the greeting: kernels are forgotten, let go of and
        # dropped, and processes end. So each step below looks again at what is wanted.
        gone = await self._errands.ended(link)
        unwanted = self._errands.is_unwanted  # forgotten meanwhile
        records = [one for one in greeted.kept if one.kernel_id not in gone]
        records = [one for one in records if not unwanted(one.kernel_id, one.pid)]
        for record in records:
            self._processes.note(record)
        known = {record.kernel_id for record in records}
        for watched in self._processes:
            # What is awaited here takes its time.
            wanted = self._processes.get(watched.kernel_id) is watched
            if wanted and watched.kernel_id not in known and not watched.exited.done():
                await self._adopt_again(link, watched)
        return partial(self._begin, link, await self._lines.hear_again(link))

    def _begin(self, link: KeeperLink, heard: Sequence[tuple[Line, Heard]]) -> None:
        for line in self._lines.begin(heard):
            self._errands.keep(line.kernel_id)
        # Of what was forgotten while it was greeted, too: there was no link in use to tell that
        # over. What is told twice the keeper does once.
        self._errands.tell(link)

    async def _adopt_again(self, link: KeeperLink, watched: WatchedProcess) -> None:
        """Tell a new keeper of a kernel that it has not; one that it refuses is no end of all."""
        fields = {"pid": watched.pid, "start_time": watched.start_time, "output": watched.output}
        fields["limits"] = msgspec.to_builtins(watched.limits)
        try:
            answer, _ = await link.ask({"ask": "adopt", "kernel_id": watched.kernel_id, **fields})
            if answer is None:
                watched.end(UNKNOWN_EXIT)
        except (KeeperRefuses, OSError) as error:
            log = about(logger, kernel_id=watched.kernel_id)
            log.error("kernel %s is not kept: %s", watched.kernel_id, error)

    def on_event(self, fields: Fields) -> None:
        """The keeper tells something that was not asked for."""
        if fields["event"] == "malformed":
            self._lines.on_malformed(fields)
        if fields["event"] == "exited":
            self._processes.on_exited(fields)
        if fields["event"] == "fenced":
            self.on_fenced(str(fields["kernel_id"]))

    def on_bells(self, data: bytes) -> None:
        """The keeper tells how far logs go."""
        self._lines.on_bells(data)

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended."""
        if not self._connection.ended(link):
            return
        if running := self._processes.running:
            text = "the connection to the keeper has ended; its %d kernels live on"
            logger.warning(text, running)
        for callback in self.on_lost:
            callback()
        if running or len(self._lines) or len(self._errands):
            self._connection.recover_soon()

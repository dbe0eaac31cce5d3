"""One keeper, as the service sees it: it is found or started, and asked for processes.

The keeper (`app.keeper`) is the parent of local kernels, and hears all kernels. It outlives the
server, to keep them or to end them, and ends by itself. If it dies, its kernels live on: another is
started at once and watches them by their pids; only how they end is then known no more.

Any request may go unanswered: the keeper may hang, be killed, or be killed just before it answers.
So the server sees by itself *that* a process has ended, and waits for the keeper only to be told
*how*. It signals a process by itself if the keeper does not. A process that may have been launched
although no answer came is ended, by this keeper or the next.
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
"""How long the keeper may take for an answer that the server can do without."""

KILL_SECONDS: Final = 5.0
"""How long a process that was killed may take to be gone."""


class Keeper:
    """The server's connection to one keeper of its state directory, made when first needed.

    Make it inside a running event loop, and `close` it there. Methods that ask the keeper raise
    `KeeperUnavailable` if there is none and none can be started. ``on_lost`` are called when the
    connection has ended, ``on_empty`` when a kernel is gone and no other is left, and ``on_gone``
    when there is no keeper at ``place`` any more, nor will be. ``on_fenced`` is called with the id
    of a kernel that another replica has.
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
        """Begin to connect to the keeper, and try again until there is a connection."""
        self._connection.recover_soon()

    def bound_logs(self, total: int) -> None:
        """Have the logs of all kernels of this keeper take ``total`` bytes together at most."""
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
        """Start a kernel's process, which leads a session and writes to the file ``output``.

        A process that had this id and has ended is replaced. ``further`` are fields of the request
        that the keeper must not ignore (`CAN`). Raises `OSError` or `ValueError` when there is
        nothing to execute, and `IsolationUnavailable` if the keeper does not know such a field.
        Whatever is raised, no process was started, or it is ended.
        """
        if not command:
            raise ValueError("there is no command to execute")
        fields = {"command": list(command), "env": dict(env), "cwd": cwd, "output": str(output)}
        fields |= further
        # The second attempt may go to another keeper, after the first keeper has launched the
        # process. Each attempt has a name of its own: the process of the first attempt is ended
        # while the next keeper is greeted, before that one launches anything.
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
            # No answer came, or a senseless one, or the caller was cancelled: the process may have
            # been launched, or will be. The keeper reads a later launch after this errand.
            self._errands.end(kernel_id, launch=launch)
            raise
        self._processes.note(kept, anew=True, limits=limits)
        return kept

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Start a process that is no kernel; returns its id and its start time.

        The process is the keeper's child, and so are its descendants when their parents end. Raises
        `OSError` if the command cannot be executed.
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
        """Have the keeper watch a process that runs already; None if the process is gone.

        Does nothing if the keeper watches it already. If the process is not the keeper's child,
        its exit code will not be known.
        """
        fields: Fields = {"pid": pid, "start_time": start_time, "output": str(output)}
        fields["limits"] = msgspec.to_builtins(limits)
        answer, _ = await self._connection.ask("adopt", kernel_id=kernel_id, **fields)
        if answer is None:
            # Read after the answer: a keeper that was greeted while this waited may have told of
            # the end. If a keeper that was replaced knew the exit code, it is here.
            watched = self._processes.get(kernel_id)
            if watched is None or watched.pid != pid or not watched.exited.done():
                return None
            return Kept(kernel_id, pid, start_time, watched.exited.result(), watched.output)
        kept = kept_of(answer, kernel_id)
        self._processes.note(kept, limits=limits)
        return kept

    # What kernels say, and are asked (app.managers.messages.line.Hearer)

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """Have the keeper open a kernel's log, and sockets to its process if there is ``info``.

        Raises `KernelUnreachable` if the keeper refuses.
        """
        heard = await self._lines.hear(line, directory, info, anew=anew)
        # If a log is still to be removed, it was that of an earlier kernel with this id. The keeper
        # removes it first: it was told so before it was asked to hear this kernel.
        self._errands.keep(line.kernel_id)
        return heard

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request to a kernel."""
        self._lines.request(line, message, owner)

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making to a kernel's log."""
        self._lines.say(line, message, owner, flags)

    async def settle(self, kernel_id: str) -> bool:
        """As `Hearer.settle`: returns whether there was any message, or may be more."""
        return bool(await self._ask("settle", kernel_id))

    async def stdin_connected(self, kernel_id: str) -> bool:
        """Whether the keeper's stdin socket to a kernel is connected."""
        return bool(await self._ask("stdin", kernel_id))

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """Tell the keeper that the kernel counts as ready, and in which share its log is."""
        self._connection.tell({"ask": "open", "kernel_id": kernel_id, "share": share})

    async def disconnect(self, kernel_id: str) -> None:
        """Have the keeper close its sockets to a kernel whose process has ended."""
        await self._ask("disconnect", kernel_id)

    def renew(self, kernel_id: str) -> None:
        """Have a log go on in a new segment, as its newest one cannot be read."""
        self._connection.tell({"ask": "renew", "kernel_id": kernel_id})

    def drop(self, kernel_id: str) -> None:
        """Have the log of a kernel that is gone removed: now, or when there is a keeper again."""
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
        """Send a signal to the kernel's process group, without the keeper if it does not answer.

        Raises `ProcessLookupError` if the process has ended. Bounded by `QUICK_SECONDS`.
        """
        watched = self._processes.get(kernel_id)
        fields: Fields = {"kernel_id": kernel_id, "number": int(number)}
        if watched is None:
            await self._connection.ask("signal", **fields)
            return
        # Not `linked`: a signal must not wait for a keeper that has to be started first. The keeper
        # is asked once only: by the time that another keeper is asked, the kernel may have another
        # process.
        if self._connection.link is not None:
            try:
                await self._connection.link.ask({"ask": "signal", **fields}, QUICK_SECONDS)
                return
            except ProcessLookupError:
                raise
            except (KeeperUnavailable, OSError) as error:
                log = about(logger, kernel_id=kernel_id)
                log.warning("kernel %s is signalled without its keeper: %s", kernel_id, error)
        # `watched` is the process that the kernel had when this began: if the kernel has another by
        # now, this raises `ProcessLookupError`, and no other process is signalled.
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
        """Forget a kernel's process, and end it if it still runs.

        With ``pid`` only that process, which the keeper may have although its answer did not come.
        Returns at once, and raises nothing: a keeper that cannot be told now is told later.
        """
        pid = self._processes.forget(kernel_id, pid)
        if pid is not None:
            self._errands.end(kernel_id, pid=pid)

    async def end(self, kernel_id: str) -> None:
        """Kill the process that the keeper has of a kernel, if it has one, and forget it.

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
        """Take all kernels of another keeper, which is gone, and the processes that were ``found``.

        They are this keeper's at once. The task is done when the keeper knows the processes and
        hears the kernels; if it raises `KeeperUnavailable`, the next connection tells the keeper.
        """
        # Nothing is awaited here: a kernel is found at one keeper or at the other, at any time.
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
        # If the link was made only now, its greeting has told all of this, and so will the next
        # link's if this one ends meanwhile. The keeper does nothing twice.
        for watched in taken:
            await self._adopt_again(link, watched)
        self._errands.tell(link)
        await self._lines.hear_missing()

    async def close(self) -> None:
        """Close the connection. The keeper goes on while it has kernels, unless they end now."""
        await self._connection.close()
        await self._lines.close()
        # Wait for the answers: a keeper that cannot send one reads no further requests.
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
        """Greet a keeper, and tell it the errands and the kernels that the one before had."""
        link.term_of = None if self._terms is None else self._terms.term_of
        answer, _ = await link.ask(self._hello(link))
        greeted = greeted_by(link, answer, self._terms)
        # Drops are told before anything else is asked over this link: a new kernel with the id of
        # one that was dropped is heard after the log of the dropped one is removed.
        self._errands.tell_drops(link)
        self._has_greeted = True
        self._heard = {each for each in greeted.heard if not self._errands.is_dropped(each)}
        # While this awaits, kernels may be forgotten, let go of or dropped, and processes may end.
        # So each step below looks again at which kernels and processes there are.
        gone = await self._errands.ended(link)
        unwanted = self._errands.is_unwanted  # forgotten meanwhile
        records = [one for one in greeted.kept if one.kernel_id not in gone]
        records = [one for one in records if not unwanted(one.kernel_id, one.pid)]
        for record in records:
            self._processes.note(record)
        known = {record.kernel_id for record in records}
        for watched in self._processes:
            # Earlier turns of this loop have awaited.
            wanted = self._processes.get(watched.kernel_id) is watched
            if wanted and watched.kernel_id not in known and not watched.exited.done():
                await self._adopt_again(link, watched)
        return partial(self._begin, link, await self._lines.hear_again(link))

    def _begin(self, link: KeeperLink, heard: Sequence[tuple[Line, Heard]]) -> None:
        for line in self._lines.begin(heard):
            self._errands.keep(line.kernel_id)
        # Errands that came during the greeting have no link to be told over until now. Others are
        # told a second time, and the keeper does each once.
        self._errands.tell(link)

    async def _adopt_again(self, link: KeeperLink, watched: WatchedProcess) -> None:
        """Have a new keeper watch a process that it does not know; a refusal is only logged."""
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
        """As `LinkOwner.on_event`: malformed messages, the end of a process, or a lost kernel."""
        if fields["event"] == "malformed":
            self._lines.on_malformed(fields)
        if fields["event"] == "exited":
            self._processes.on_exited(fields)
        if fields["event"] == "fenced":
            self.on_fenced(str(fields["kernel_id"]))

    def on_bells(self, data: bytes) -> None:
        """As `LinkOwner.on_bells`."""
        self._lines.on_bells(data)

    def on_end(self, link: KeeperLink) -> None:
        """As `LinkOwner.on_end`: a new connection is made if there are kernels or errands."""
        if not self._connection.ended(link):
            return
        if running := self._processes.running:
            text = "the connection to the keeper has ended; its %d kernels live on"
            logger.warning(text, running)
        for callback in self.on_lost:
            callback()
        if running or len(self._lines) or len(self._errands):
            self._connection.recover_soon()

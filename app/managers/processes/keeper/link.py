"""One connection to one keeper's process."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

from ....keeper.protocol import (
    MAX_FRAME,
    Fields,
    Frames,
    Garbled,
    cut_off,
    is_own_peer,
    pack,
    receive,
    socket_address,
)
from ....protocol.messages import Buffer, MalformedMessage
from ...errors import IsolationUnavailable, KeeperUnavailable

__all__ = [
    "ANSWER_SECONDS",
    "KeeperLink",
    "KeeperRefuses",
    "LinkLost",
    "LinkOwner",
    "Writer",
    "greeting_of",
]

logger = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 10.0
"""How long the keeper may take to answer a request."""

SILENT_SECONDS: Final = 5.0
"""After how long without an answer a keeper counts as hanging. A keeper that only has much to do,
such as several launches, answers sooner, between two turns of its loop."""

CLOSE_SECONDS: Final = 2.0
"""How long a connection that is being closed may take to send what is left."""

GREETING_BYTES: Final = 2**16
"""The greatest size of a keeper's greeting, which is the first frame of a connection."""

MAX_UNSENT: Final = 2**23
"""Bytes that may wait for a keeper which reads nothing; with more waiting, `ask` is refused."""


_ALWAYS_HEEDED: Final = frozenset({"command", "env", "cwd", "output"})
"""The fields of a launch that every keeper heeds."""


class LinkLost(KeeperUnavailable):
    """The connection ended before the answer came: the keeper may have done what it was asked."""

    def __init__(self) -> None:
        super().__init__("The connection to the keeper of kernels has ended")


class KeeperRefuses(KeeperUnavailable):
    """The keeper has refused a request and done nothing; the text says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The keeper of kernels refuses: {reason}")


class Writer(Protocol):
    """The writing side of a stream that was just connected."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The transport of the stream, or what behaves like one."""


class LinkOwner(Protocol):
    """The object that is told what comes over a `KeeperLink`."""

    def on_event(self, fields: Fields) -> None:
        """The keeper has sent an event, which answers no request."""

    def on_bells(self, data: bytes) -> None:
        """The keeper has sent a doorbell: how far the logs of kernels go (`app.protocol.link`)."""

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended."""


class KeeperLink:
    """One connection to one keeper's process."""

    most: int = MAX_FRAME
    """How many bytes a frame from the keeper may have."""

    def __init__(self, writer: Writer, greeting: Fields, owner: LinkOwner) -> None:
        self.protocol: int = greeting["keeper"]
        self.pid: int = greeting["pid"]
        self.can: frozenset[str] = frozenset()
        """Fields of requests that the keeper heeds, as it has told when it was greeted (`CAN`)."""
        self.term_of: Callable[[str], int] | None = None
        """The term in which this server, as one of several replicas, has a kernel. None without
        replicas (`app.keeper.terms`)."""
        self._owner = owner
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[tuple[Any, bytes]]] = {}
        self._open = True
        self._ended = asyncio.Event()
        self._question: asyncio.Future[tuple[Any, bytes]] | None = None  # the last of `is_silent`
        self._questioned = 0.0
        # The transport changes its protocol here, from the stream that read the greeting. No bytes
        # can be left in that stream: after the greeting the keeper sends nothing unasked.
        frames = Frames(self._on_frame, self._on_lost, self.most)
        self._writer = writer  # a writer that is collected would close the connection
        self._transport = writer.transport
        frames.connection_made(self._transport)
        self._transport.set_protocol(frames)

    def check_heeds(self, launch: Fields) -> None:
        """Raise `IsolationUnavailable` if the keeper would ignore a field of a launch."""
        if not launch.keys() <= _ALWAYS_HEEDED | self.can:
            raise IsolationUnavailable(
                f"the keeper, process {self.pid}, is an earlier one; it ends with its kernels"
            )

    @classmethod
    async def open(cls, directory: int, path: Path, owner: LinkOwner) -> KeeperLink | None:
        """A connection to the keeper that listens in a directory; None if no process listens.

        ``directory`` is a descriptor of the keeper's directory, ``path`` its path. Raises `Garbled`
        if the process that listens is no keeper or does not answer, and `PermissionError` if it is
        another user's.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            with socket_address(directory, path) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except BlockingIOError:
            # The keeper's backlog is full: it has accepted no connections for long, as when its
            # process is stopped.
            connection.close()
            raise Garbled(_SILENT) from None
        except BaseException:
            connection.close()
            raise
        # Checked before anything is read or sent: requests have kernels' keys and environments.
        if not is_own_peer(connection):
            connection.close()
            raise PermissionError("a process of another user listens on its socket")
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            return cls(writer, await greeting_of(reader), owner)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            writer.close()
            if getattr(error, "partial", b""):
                raise Garbled(_FOREIGN) from None
            await asyncio.sleep(0.05)  # a keeper that hangs up without a greeting is about to end
            return None
        except Garbled:
            writer.close()
            raise Garbled(_FOREIGN) from None
        except TimeoutError:
            writer.close()
            raise Garbled(_SILENT) from None
        except BaseException:
            writer.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent. If not, the owner's `on_end` was called, or will be."""
        return self._open and not self._transport.is_closing()

    async def ask(self, fields: Fields, seconds: float | None = None) -> tuple[Any, bytes]:
        """Ask the keeper; returns its answer and the bytes that follow the answer in its frame.

        ``seconds`` is the bound, `ANSWER_SECONDS` by default. Raises `LinkLost`, `KeeperRefuses`,
        `KeeperUnavailable` if no answer comes in time (the keeper may have done what it was asked
        all the same), `OSError` if the keeper has met one, and `ValueError` for a request that is
        too large.
        """
        # A keeper whose process was stopped meanwhile reads a request late. `until` (a monotonic
        # time, which all processes of the machine share) has it refuse a request that was given up
        # here.
        seconds = ANSWER_SECONDS if seconds is None else seconds
        # A keeper that is stopped reads nothing, and requests stay in the write buffer although
        # `ask` times out. Requests to kernels have a bound of their own
        # (`app.managers.messages.line.WINDOW`).
        if self.is_open and self._transport.get_write_buffer_size() > MAX_UNSENT:
            raise KeeperRefuses("it has not read what it was asked before")
        number = next(self._numbers)
        answer = self._send(number, {**fields, "until": self._clock() + seconds})
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise KeeperUnavailable("The keeper of kernels does not answer") from None
        finally:
            # Also when the caller is cancelled. A later answer is dropped then, and the caller sees
            # to it that a process which may have been launched is ended (`Errands`).
            self._asked.pop(number, None)

    def _clock(self) -> float:
        """The time, in seconds, by the clock that the keeper looks at."""
        return time.monotonic()

    def tell(self, fields: Fields) -> asyncio.Future[tuple[Any, bytes]]:
        """Send a request that the keeper is to do however late it reads it; returns the answer.

        The future need not be awaited. Raises `LinkLost`, and `ValueError` for one too large.
        """
        return self._send(next(self._numbers), fields)

    def _send(self, number: int, fields: Fields) -> asyncio.Future[tuple[Any, bytes]]:
        answer: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        if not self.is_open:
            raise LinkLost
        if self.term_of is not None and "kernel_id" in fields:
            fields = {**fields, "term": self.term_of(fields["kernel_id"])}
        # `_asked` is set after the write, as `pack` may refuse the request. No answer can come
        # between the two, for the loop hands on frames in another turn.
        self._transport.write(pack({**fields, "id": number}))
        self._asked[number] = answer
        return answer

    def is_silent(self) -> bool:
        """Whether the keeper has not answered a question for `SILENT_SECONDS`.

        Each call asks again once the last question was answered. So a keeper that hangs has one
        question to answer when it goes on, however often this was called. Raises `LinkLost`.
        """
        now = asyncio.get_running_loop().time()
        if self._question is None or self._question.done():
            self._question, self._questioned = self.tell({"ask": "load"}), now
        return now - self._questioned > SILENT_SECONDS

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Send pieces of a frame that has no answer (`app.protocol.link`)."""
        self._transport.write(pack({}, b"".join(pieces)))

    async def drain(self) -> list[Fields]:
        """Have the keeper let go of its kernels and end; returns its records of their processes.

        Raises `LinkLost`, `KeeperRefuses`, and `KeeperUnavailable` if it does not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                # Unlike a request by `ask`, this one has no `until`: a keeper that reads it late
                # lets go all the same, and the next attempt finds that the keeper is gone.
                answer, _ = await self.tell({"ask": "drain"})
        except TimeoutError:
            raise KeeperUnavailable("The keeper of kernels does not let go of them") from None
        finally:
            await self.close()
        return list(answer)

    def abort(self) -> None:
        """End the connection at once, whatever is under way."""
        cut_off(self._transport)

    async def close(self) -> None:
        """Close the connection, within `CLOSE_SECONDS` even if the keeper reads nothing more."""
        self._open = False
        self._transport.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._ended.wait()
        except TimeoutError:  # the transport's close waits until all is sent, which may be never
            cut_off(self._transport)

    def _on_frame(self, fields: Fields, data: bytes) -> None:
        try:
            # Frames come in the order in which the keeper has sent them, but the task that awaits
            # an answer runs a turn of the loop later: after bells and events that came behind the
            # answer (`Lines._unheard`, `Processes._early`).
            if not fields:
                self._owner.on_bells(data)
                return
            if "event" in fields:
                self._owner.on_event(fields)
                return
            # An older keeper sends no ids, and answers in the order in which it was asked.
            number = fields.get("id", next(iter(self._asked), 0))
            answer = self._asked.pop(number, None)
            # An answer may come after `ask` has timed out. `ask` has then forgotten its number.
            if answer is not None:
                _settle(answer, fields, data)
        except Exception as error:
            # `Frames` ends the connection for `Garbled` alone. For any other error asyncio would
            # close the transport as well, but log a traceback for what a keeper may do at will.
            text = "the keeper makes no sense; the connection to it is ended: %s"
            logger.error(text, error, exc_info=not isinstance(error, (Garbled, MalformedMessage)))
            raise Garbled(str(error)) from error

    def _on_lost(self, error: Exception | None) -> None:
        logger.debug("the connection to the keeper has ended: %s", error)
        self._open = False
        self._transport.close()
        for answer in self._asked.values():
            _fail(answer, LinkLost())
        self._asked.clear()
        self._ended.set()
        self._owner.on_end(self)


async def greeting_of(reader: asyncio.StreamReader) -> Fields:
    """The greeting of a keeper. Raises `Garbled`, `TimeoutError` and what `receive` does."""
    async with asyncio.timeout(ANSWER_SECONDS):
        greeting, _ = await receive(reader, GREETING_BYTES)
    if type(greeting.get("keeper")) is not int or type(greeting.get("pid")) is not int:
        raise Garbled("no greeting")
    return greeting


_SILENT: Final = "what listens on its socket says nothing; is its process stopped?"
_FOREIGN: Final = "what listens on its socket is no keeper; end that process or remove the socket"


def _settle(answer: asyncio.Future[tuple[Any, bytes]], fields: Fields, data: bytes) -> None:
    if answer.done():  # cancelled: the caller has given up
        return
    if "answer" in fields:
        answer.set_result((fields["answer"], data))
    elif "errno" in fields:
        _fail(answer, OSError(fields["errno"], fields["strerror"], fields["filename"]))
    else:
        _fail(answer, KeeperRefuses(str(fields["error"])))


def _fail(answer: asyncio.Future[tuple[Any, bytes]], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # or asyncio would log the error if no task awaits the answer

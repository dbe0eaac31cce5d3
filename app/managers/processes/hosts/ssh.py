"""A host behind SSH: the connection to it, the start of a keeper there, and a stream to that.

No value of a client's request is ever in a command. The one command that is run on the host is the
interpreter with a constant program, which reads everything else from its stdin.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..keeper.remote import Host
from . import bootstrap
from .bundle import MODULE, bundle, program
from .errors import (
    EngineNotInstalled,
    HostFull,
    HostKeyRefused,
    HostLoginRefused,
    HostUnreachable,
    HostUnusable,
    HostWithoutPython,
)
from .jumps import Way
from .options import SSHOptions
from .pythons import MARK

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection, SSHUNIXChannel

__all__ = ["Ready", "SocketRefused", "Stream", "bring_keeper", "connect", "open_stream"]

CONNECT_SECONDS: Final = 10.0
"""How long a host may take to let the user in."""

START_SECONDS: Final = 25.0
"""How long it may take until a keeper listens on the host."""

MAX_LINES: Final = 200
"""How many lines a login may print before the answer."""

# The program's length comes first, as stdin stays open behind it: for the order, and the zip.
PROGRAM: Final = (
    "import sys; read = sys.stdin.buffer; "
    "exec(compile(read.read(int(read.readline())), 'kernelkeep', 'exec'), {'__name__': '__main__'})"
)

_SENT: Final = program(bootstrap.__file__)

_ERRORS: Final = {
    error.code: error for error in (HostFull, HostUnreachable, HostUnusable, HostWithoutPython)
}


class SocketRefused(HostUnusable):
    """The host does not connect a stream to the keeper's socket."""


class Ready(msgspec.Struct, frozen=True):
    """The last answer of the bootstrap: the path of the keeper's socket, and fields of `Host`."""

    socket: str
    home: str
    python: str
    env: dict[str, str]

    @property
    def host(self) -> Host:
        """The host."""
        return Host(self.home, self.python, self.env)

    @property
    def directory(self) -> str:
        """Where the keeper has its files."""
        return str(PurePosixPath(self.socket).parent.parent)


class _Answer(msgspec.Struct):
    """An answer of the bootstrap: ``send``, ``failed`` with a text, or ``ready``."""

    send: bool = False
    failed: str = ""
    text: str = ""
    ready: Ready | None = None


def _answer(line: bytes, options: SSHOptions) -> _Answer:
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except msgspec.MsgspecError:
        answer = _Answer()
    if not (answer.send or answer.failed or answer.ready):
        raise HostUnusable(f"{options.name}: what {options.python} answers there makes no sense")
    return answer


async def connect(options: SSHOptions) -> SSHClientConnection:
    """A connection to the host, whose key must be known. Raises `HostUnusable`.

    User, keys, agent, known hosts and jump hosts come from ssh's configuration and its defaults.
    """
    try:
        import asyncssh
    except ImportError:
        text = "Kernels behind SSH take the package asyncssh: pip install 'kernelkeep[ssh]'"
        raise EngineNotInstalled(text) from None
    given: dict[str, Any] = {"username": options.user, "port": options.port}
    given = {key: value for key, value in given.items() if value is not None}
    way = Way(options.name, await asyncio.to_thread(_config_files, options))
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            # ssh's configuration may have a longer bound (ConnectTimeout), for which a kernel's
            # start must not wait.
            return await way.connect(options.hosts[0], given)
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostKeyRefused(
            f"The key of {way.at} is not the one in known_hosts, or none is there: {error.reason}"
        ) from error
    except asyncssh.PermissionDenied as error:
        raise HostLoginRefused(f"{way.at} does not let the user in: {error.reason}") from error
    except TimeoutError:
        raise HostUnreachable(f"{way.at} does not answer within {CONNECT_SECONDS:g} s") from None
    except (OSError, ValueError, OverflowError, asyncssh.Error) as error:
        # The error is of ssh's configuration: a wrong line, such as an impossible port, or a file
        # that it names, such as a key.
        if (
            isinstance(error, ValueError | OverflowError)
            or getattr(error, "filename", None) is not None
        ):
            text = f"ssh's configuration for {way.at} cannot be used: {error}"
            raise HostUnusable(text) from error
        raise HostUnreachable(f"{way.at} cannot be reached: {error}") from error


def _config_files(options: SSHOptions) -> list[str] | None:
    path = Path(options.ssh_config).expanduser()
    # None has asyncssh read no configuration. Given a path that is not there, it would fail.
    return [str(path)] if path.is_file() else None


async def bring_keeper(connection: SSHClientConnection, options: SSHOptions, name: str) -> Ready:
    """Have a keeper run on the host, if none does. Raises `HostUnusable`.

    ``name`` is that of the keeper's directory there (`place.keeper_name`).
    """
    import asyncssh

    try:
        async with asyncio.timeout(START_SECONDS):
            command = f"{_quoted(options.python)} -c {shlex.quote(PROGRAM)}"
            process = await connection.create_process(command, encoding=None)
            try:
                return await _converse(process, options, name)
            finally:
                # The end is not waited for, as `async with` would do: a host that has gone silent
                # closes nothing, and the bound may be over by now.
                process.close()
    except TimeoutError:
        text = f"{options.name} has no keeper ready within {START_SECONDS:g} s"
        raise HostUnreachable(text) from None
    except (OSError, asyncssh.Error) as error:
        raise HostUnreachable(f"The connection to {options.name} broke: {error}") from error


def _quoted(path: str) -> str:
    """A path as a word for the user's shell; ``~/`` stays the home."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


async def _converse(process: Any, options: SSHOptions, name: str) -> Ready:
    """Send the bootstrap and its order to an interpreter that was just started."""
    brought = await asyncio.to_thread(bundle)
    order = {
        "path": options.path,
        "name": name,
        "module": MODULE,
        "digest": brought.digest,
        "size": len(brought.data),
    }
    process.stdin.write(b"%d\n%s%s\n" % (len(_SENT), _SENT, json.dumps(order).encode()))
    for _ in range(MAX_LINES):
        line = await process.stdout.readline()
        if not line:
            break
        mark, _, text = line.partition(MARK.encode())
        if mark or not text:
            continue
        answer = _answer(text, options)
        if answer.ready is not None:
            return answer.ready
        if answer.failed:
            error = _ERRORS.get(answer.failed, HostUnusable)
            raise error(f"{options.name}: {answer.text}")
        # The zip is asked for once at the most: the next answer is `ready` or `failed`. If a host
        # asks again and again, it gets it again, until `MAX_LINES` or the time is up.
        process.stdin.write(brought.data)
    said = (await process.stderr.read(2000)).decode(errors="replace").strip()
    await process.wait()
    raise HostWithoutPython(
        f"{options.name}: {options.python} cannot be run: "
        f"{said or f'it ended with status {process.exit_status}'}"
    )


class Stream:
    """A stream over an SSH connection, as asyncio's transport and protocol at once.

    Data that comes is fed to ``reader`` until `set_protocol`. The connection ends with the stream.
    """

    def __init__(self, connection: SSHClientConnection) -> None:
        self.reader = asyncio.StreamReader()
        self._connection = connection
        self._protocol: asyncio.Protocol | None = None
        self._channel: SSHUNIXChannel[bytes] | None = None
        self._is_closing = False

    # What asyncssh calls

    def connection_made(self, channel: SSHUNIXChannel[bytes]) -> None:
        """The stream is there."""
        self._channel = channel

    def session_started(self) -> None:
        """It can be used."""

    def data_received(self, data: bytes, _datatype: int | None) -> None:
        """Something has come."""
        if self._protocol is None:
            self.reader.feed_data(data)
        else:
            self._protocol.data_received(data)

    def eof_received(self) -> bool:
        """The other end says nothing more: that is the end."""
        return False

    # No writer is paused, as no writer of a link waits: the windows of the lines bound the requests
    # to kernels, and `KeeperLink.ask` checks the size of the buffer.
    def pause_writing(self) -> None:
        """More waits to be sent than should."""

    def resume_writing(self) -> None:
        """It has been sent."""

    def connection_lost(self, error: Exception | None) -> None:
        """The stream has ended."""
        self._is_closing = True
        if self._protocol is None:
            self.reader.feed_eof()
        else:
            self._protocol.connection_lost(error)
        self._connection.abort()  # it was made for this stream alone

    # What a link calls

    @property
    def transport(self) -> asyncio.WriteTransport:
        """This stream."""
        return self  # type: ignore[return-value]

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Give what comes from now on to a protocol."""
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        """Send something; nothing is sent once the stream is closing."""
        if self._channel is not None and not self.is_closing():
            self._channel.write(data)

    def get_write_buffer_size(self) -> int:
        """How many bytes wait to be sent."""
        return 0 if self._channel is None else self._channel.get_write_buffer_size()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._is_closing or self._channel is None or self._channel.is_closing()

    def pause_reading(self) -> None:
        """Take nothing for now."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Take what has come."""
        if self._channel is not None:
            self._channel.resume_reading()

    def close(self) -> None:
        """End the stream when all is sent."""
        self._is_closing = True
        if self._channel is not None:
            self._channel.close()

    def abort(self) -> None:
        """End the stream, and the connection, at once."""
        self._is_closing = True
        self._connection.abort()


async def open_stream(connection: SSHClientConnection, path: str) -> Stream:
    """A stream to the socket with this path on the host. Raises `HostUnusable`."""
    import asyncssh

    stream = Stream(connection)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            # Its callbacks are those of `asyncssh.SSHUNIXSession`.
            await connection.create_unix_connection(lambda: stream, path, encoding=None)  # type: ignore[arg-type,return-value]
    except asyncssh.ChannelOpenError as error:
        text = (
            f"The host does not lead to the keeper's socket (AllowStreamLocalForwarding): {error}"
        )
        raise SocketRefused(text) from error
    except TimeoutError:
        raise HostUnreachable("The host does not lead to the keeper's socket in time") from None
    except (OSError, asyncssh.Error) as error:
        raise HostUnreachable(f"The connection broke: {error}") from error
    return stream

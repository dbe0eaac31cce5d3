"""Jupyter messages as they travel: raw JSON parts, and the few header fields that steer them.

A message is four JSON parts (header, parent header, metadata, content) and any number of binary
buffers [Jupyter messaging protocol, "General message format"]. Content is not parsed here. The
header and the parent header are decoded once each, for type, id, session and subshell.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import lru_cache
from struct import Struct, unpack_from
from typing import Any, Final, Optional, Union
from uuid import uuid4

import msgspec

__all__ = [
    "CHANNELS",
    "CLIENT_CHANNELS",
    "LENIENT_BYTES",
    "MAX_ID_BYTES",
    "PROTOCOL_VERSION",
    "UNTRACKED_MESSAGE_TYPES",
    "ClientMessage",
    "Header",
    "MalformedMessage",
    "Message",
    "checked_object",
    "complete_header",
    "decode_header",
    "decode_parent",
    "format_timestamp",
    "new_header",
    "reply_type",
    "utc_now",
]

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
"""The channels whose messages clients get. Clients never see the heartbeat."""

CLIENT_CHANNELS: Final = frozenset({"shell", "control", "stdin"})
"""The channels that a client may write to. Only the kernel writes to iopub."""

PROTOCOL_VERSION: Final = "5.4"
"""The ``version`` in headers that the server makes. Informative: nothing is gated on it."""

Buffer = Union[bytes, memoryview]


UNTRACKED_MESSAGE_TYPES: Final = frozenset(
    {
        "comm_info_request",
        "comm_info_reply",
        "kernel_info_request",
        "kernel_info_reply",
        "shutdown_request",
        "shutdown_reply",
        "interrupt_request",
        "interrupt_reply",
        "debug_request",
        "debug_reply",
        "stream",
        "display_data",
        "update_display_data",
        "execute_input",
        "execute_result",
        "error",
        "status",
        "clear_output",
        "debug_event",
        "input_request",
        "input_reply",
    }
)
"""Message types that do not count as activity (the defaults of Jupyter's kernel manager)."""

MAX_HEADER_BYTES: Final = 65536
"""How many bytes a client's header may have: to complete it, all of it is parsed."""


MAX_ID_BYTES: Final = 1024
"""How many bytes of UTF-8 a client's ``msg_id`` may have. It is the key of an execution in the
registry. If a database refused the key, nothing that is stored together with it would be stored."""

LENIENT_BYTES: Final = 2**20
"""Bytes of JSON up to which a client's part is parsed a second time, leniently. What is larger is
refused, as parsed JSON takes up to thirty times its size."""


MAX_SHARED_BYTES: Final = 2048
"""How many bytes a parent header may have to be cached, for the next message with the same one."""


# Pieces of a v1 frame's table of offsets (see app.protocol.v1).
_COUNT: Final = Struct("<Q")
_BEGIN: Final = Struct("<5Q")
_SIX_BOUNDS: Final = Struct("<6Q")
_PART_BOUNDS: Final = Struct("<QQ")


class MalformedMessage(ValueError):
    """A message cannot be understood; the text says which part, and why."""


class Header(msgspec.Struct, gc=False):
    """The fields of a message header that decide where a message goes.

    ``subshell_id`` is set on requests for a subshell, and in their parents [JEP 91].
    """

    msg_id: str = ""
    msg_type: str = ""
    session: Optional[str] = None
    subshell_id: Optional[str] = None


_NO_PARENT: Final = Header()
_header_decoder: Final = msgspec.json.Decoder(Optional[Header])
_encoder: Final = msgspec.json.Encoder()


def decode_header(part: Buffer, what: str = "header") -> Header:
    """Decode the steering fields of a header or parent header part.

    ``{}`` and ``null``, the parent headers of messages that answer no request, give a header of
    empty fields. A field that is null counts as left out. Raises `MalformedMessage` when the part
    is not a JSON object or a steering field is not a string.
    """
    if part == b"{}":
        return _NO_PARENT
    try:
        # Some clients and kernels send null for a field that they leave out. This is rare, and is
        # decoded twice, so that no other code has to expect None.
        try:
            return _header_decoder.decode(part) or _NO_PARENT
        except msgspec.ValidationError:
            return msgspec.convert(_fields(part), Header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"{what}: {error}") from None


def decode_parent(part: Buffer) -> Header:
    """As `decode_header`, for a parent header. The result is cached, and must not be changed.

    Messages that follow each other mostly have the same parent.
    """
    # The key of the cache is the part itself: no two requests share one, whatever their ids.
    if isinstance(part, bytes) and len(part) <= MAX_SHARED_BYTES:
        return _decode_parent(part)
    return decode_header(part, "parent_header")


@lru_cache(256)
def _decode_parent(part: bytes) -> Header:
    return decode_header(part, "parent_header")


class Message(msgspec.Struct, gc=False, eq=False):
    """One message to clients, as its frame in the ``v1`` WebSocket framing.

    The frame has the kernel's own bytes behind a table of offsets. So one object serves the log,
    readers in the v1 framing (which are sent the frame as it is) and readers in the legacy framing
    (whose frame is spliced from it once: see `app.protocol.legacy`). There may be tens of thousands
    of these objects, so facts that can be read from the frame are not stored beside it.
    """

    channel: str
    frame: bytes
    # These two are decoded when they are first asked for.
    known_header: Header | None = None
    known_parent: Header | None = None
    # The legacy frame, built for the first reader that needs it: the bytes of a text frame, or of a
    # binary frame when there are buffers.
    legacy: bytes | None = None
    # The message's place in the log: its number, and the bytes before it; 0 until it is there.
    seq: int = 0
    offset: int = 0
    # Further pieces of the frame, if the message is large output on its way to the log.
    rest: tuple[Buffer, ...] = ()

    @property
    def header(self) -> Header:
        """The steering fields of the header. Raises `MalformedMessage`."""
        if self.known_header is None:
            self.known_header = decode_header(self.part(0))
        return self.known_header

    @property
    def parent(self) -> Header:
        """The steering fields of the parent header; shared, so they must not be changed."""
        if self.known_parent is None:
            self.known_parent = decode_parent(bytes(self.part(1)))
        return self.known_parent

    @property
    def msg_type(self) -> str:
        """The ``msg_type`` of the header."""
        return self.header.msg_type

    def stream_parent(self) -> bytes:
        """The raw parent header of a ``stream``; empty for any other message.

        Raises `MalformedMessage`. Most messages are streams, so this does as little as it can.
        """
        frame = self.frame
        if len(frame) < _BEGIN.size:
            return b""
        count, _, header_at, parent_at, metadata_at = _BEGIN.unpack_from(frame)
        if count != 6:
            return b""
        if self.known_header is None:
            self.known_header = decode_header(frame[header_at:parent_at])
        return frame[parent_at:metadata_at] if self.known_header.msg_type == "stream" else b""

    @property
    def bounds(self) -> tuple[int, ...]:
        """The offsets of the frame's table.

        Part ``i`` (0 header, 1 parent header, 2 metadata, 3 content, then buffers) is
        ``frame[bounds[i + 1]:bounds[i + 2]]``; ``bounds[0]`` is where the channel's name starts.
        """
        (count,) = _COUNT.unpack_from(self.frame)
        if count == 6:
            return _SIX_BOUNDS.unpack_from(self.frame, 8)
        return unpack_from(f"<{count}Q", self.frame, 8)

    @property
    def buffer_count(self) -> int:
        """How many binary buffers follow the four JSON parts."""
        count: int = _COUNT.unpack_from(self.frame)[0]
        return count - 6

    def part(self, index: int) -> memoryview:
        """Part ``index`` without a copy: 0 header, 1 parent, 2 metadata, 3 content, 4… buffers."""
        start, end = _PART_BOUNDS.unpack_from(self.frame, 8 * (index + 2))
        return memoryview(self.frame)[start:end]

    def content(self) -> Any:
        """The decoded content, for the few messages whose content the server must understand.

        Raises `MalformedMessage` when it is not JSON.
        """
        try:
            return msgspec.json.decode(self.part(3))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise MalformedMessage(f"content: {error}") from None

    def __repr__(self) -> str:
        return f"<Message {self.channel} {self.msg_type} {self.header.msg_id}>"


class ClientMessage(msgspec.Struct, gc=False):
    """A message from a client to a kernel: its channel, raw parts, and decoded header."""

    channel: str
    header: Header
    parts: Sequence[Buffer]
    """Header, parent header, metadata, content, then buffers."""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts)


def reply_type(msg_type: str) -> str | None:
    """The type of the reply to a message type, or None if it gets no reply (comm messages)."""
    if msg_type.endswith("_request"):
        return msg_type.removesuffix("_request") + "_reply"
    return None


def new_header(msg_type: str, session: str, msg_id: str = "") -> dict[str, str]:
    """A complete header with the present time (UTC), and a new ``msg_id`` unless one is given."""
    return {
        "msg_id": msg_id or f"{session}_{os.getpid()}_{uuid4().hex}",
        "msg_type": msg_type,
        "session": session,
        "username": "kernelkeep",
        "date": utc_now(),
        "version": PROTOCOL_VERSION,
    }


def utc_now() -> str:
    """The present time in the one form that every Jupyter client reads: UTC, microseconds, Z."""
    return format_timestamp(time.time())


def format_timestamp(seconds: float) -> str:
    """Seconds since the epoch as ``2026-11-22T14:49:48.797413Z``, always with microseconds.

    jupyter_server's gateway client parses with a mandatory fraction and a literal ``Z``.
    """
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# Header fields that kernels in other languages insist on, and some clients leave out or empty.
_EXPECTED: Final = ("msg_id", "session", "username", "date", "version")


class _FullHeader(Header):
    # These are of any type: jupyter_server's GatewayKernelClient sends a number as the date.
    username: Any = None
    date: Any = None
    version: Any = None


_full_header_decoder: Final = msgspec.json.Decoder(_FullHeader)
_fields_decoder: Final = msgspec.json.Decoder(dict[str, Any])


def _fields(part: Buffer) -> dict[str, Any]:
    """The fields of a header that are not null."""
    fields = _fields_decoder.decode(part)
    return {name: value for name, value in fields.items() if value is not None}


def complete_header(part: Buffer, session: str) -> tuple[Buffer, Header]:
    """Check a client's header, and fill in fields that are missing or empty.

    Real clients send headers with no ``date``, an empty ``session`` or no ``username``, and some
    kernels refuse those. A complete header is passed on byte for byte. As it comes back to every
    client as a parent header, all of it must be UTF-8. Raises `MalformedMessage` if it is not, is
    not an object, has no ``msg_type``, a ``msg_id`` that cannot be stored, or a steering field that
    is not a string.
    """
    if len(part) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"header: larger than {MAX_HEADER_BYTES} bytes")
    try:
        str(part, "utf-8")
        try:
            header = _full_header_decoder.decode(part)
        except msgspec.ValidationError:
            header = msgspec.convert(_fields(part), _FullHeader)
        if not header.msg_type:
            raise MalformedMessage("header: msg_type is missing")
        if "\0" in header.msg_id or len(header.msg_id.encode()) > MAX_ID_BYTES:
            raise MalformedMessage(f"header: msg_id has a NUL, or more than {MAX_ID_BYTES} bytes")
        if all(_is_text(getattr(header, name)) for name in _EXPECTED):
            return part, header
        fields = _fields(part)
        # Fields that this module does not know stay: the kernel returns them to the client in
        # parent headers.
        defaults = new_header(header.msg_type, session)
        fields.update(
            (name, defaults[name]) for name in _EXPECTED if not _is_text(fields.get(name))
        )
        header.msg_id, header.session = fields["msg_id"], fields["session"]
        return _encoder.encode(fields), header
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"header: {error}") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


class _Object(msgspec.Struct):
    """Any JSON object: fields that are not named here are read over, and not stored."""


_object_decoder: Final = msgspec.json.Decoder(_Object)


def checked_object(name: str, part: Buffer) -> Buffer:
    """A client's part as it may be sent on: a JSON object, with ``{}`` for ``null``.

    A kernel drops a message whose parts it cannot read, and replies nothing, so that the client
    would wait for ever. Raises `MalformedMessage`, with the ``name`` of the part.
    """
    if part in (b"{}", b"null"):
        return b"{}"
    try:
        str(part, "utf-8")
        _object_decoder.decode(part)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        if not _is_lenient_object(part):
            raise MalformedMessage(f"{name}: {error}") from None
    return part


def _is_lenient_object(part: Buffer) -> bool:
    # Python clients send NaN and escaped lone surrogates. msgspec refuses both; kernels take them.
    if len(part) > LENIENT_BYTES:
        return False
    try:
        return isinstance(json.loads(str(part, "utf-8")), dict)
    except (ValueError, RecursionError):
        return False

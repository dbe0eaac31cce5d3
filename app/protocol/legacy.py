"""The legacy WebSocket framing: one JSON envelope, in a text frame or before binary buffers.

Without buffers a message is a text frame. With buffers it is a binary frame, all integers
big-endian unsigned 32-bit: the number ``n`` of parts, their ``n`` offsets from the start of the
frame, the envelope, the buffers; the last part ends with the frame [jupyter_server documentation,
"WebSocket kernel wire protocols"]. The envelope is spliced from the kernel's JSON, not dumped anew.
"""

from __future__ import annotations

import json
from struct import pack, unpack_from
from typing import Final, Optional

import msgspec

from .frames import MAX_PARTS, FrameError
from .messages import (
    LENIENT_BYTES,
    Buffer,
    ClientMessage,
    MalformedMessage,
    Message,
    complete_header,
)

__all__ = ["decode_binary", "decode_text", "encode", "encode_numbered"]

_MAX_FRAME: Final = 2**32 - 1


class _Envelope(msgspec.Struct):
    """A client's envelope, with raw JSON for its parts. Real clients leave out most of them."""

    header: msgspec.Raw
    parent_header: msgspec.Raw = msgspec.Raw(b"{}")
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    content: msgspec.Raw = msgspec.Raw(b"{}")
    channel: Optional[str] = None
    buffers: msgspec.Raw = msgspec.Raw(b"[]")


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_quote = msgspec.json.Encoder().encode


def encode(message: Message) -> bytes:
    """The legacy frame of ``message``: a text frame's UTF-8, or a binary frame if it has buffers.

    The frame is built once, and stays on the message for the other readers of this framing. Raises
    `FrameError` when the frame would pass 4 GiB: the framing's offsets have 32 bits.
    """
    # Several readers share the message. Nothing awaits in here, so it is spliced once.
    if message.legacy is None:
        message.legacy = _splice(message)
    return message.legacy


def encode_numbered(message: Message) -> bytes:
    """As `encode`, with the message's number in the log as ``seq``; built anew at each call."""
    return _splice(message, b',"seq":%d' % message.seq)


def _splice(message: Message, more: bytes = b"") -> bytes:
    frame, bounds = memoryview(message.frame), message.bounds
    envelope: list[Buffer] = [
        b'{"header":',
        frame[bounds[1] : bounds[2]],
        b',"msg_id":',
        _quote(message.header.msg_id),
        b',"msg_type":',
        _quote(message.header.msg_type),
        b',"parent_header":',
        frame[bounds[2] : bounds[3]],
        b',"metadata":',
        frame[bounds[3] : bounds[4]],
        b',"content":',
        frame[bounds[4] : bounds[5]],
        b',"channel":"',
        frame[bounds[0] : bounds[1]],
    ]
    buffers = len(bounds) - 6
    if not buffers:
        return b"".join((*envelope, b'","buffers":[]', more, b"}"))
    text = b"".join((*envelope, b'"', more, b"}"))
    count = buffers + 1
    # The buffers lie one behind the other in the v1 frame too: all move by the same distance.
    shift = 4 * (count + 1) + len(text) - bounds[5]
    if len(message.frame) + shift > _MAX_FRAME:
        raise FrameError("a legacy frame cannot be larger than 4 GiB")
    offsets = (4 * (count + 1), *(bound + shift for bound in bounds[5:-1]))
    return b"".join((pack(f">{count + 1}I", count, *offsets), text, frame[bounds[5] :]))


def decode_text(text: str, session: str) -> ClientMessage:
    """Read a client's text frame; ``session`` completes a header that names no session.

    Raises `FrameError` if the text is no envelope, or has buffers (which need a binary frame), and
    `MalformedMessage` for a header that cannot be understood.
    """
    envelope = _decode_envelope(text.encode("utf-8", "surrogatepass"))
    # Clients write {}, [], null or nothing at all where there are no buffers.
    if bytes(envelope.buffers).translate(None, b" \t\r\n") not in (b"[]", b"{}", b"null"):
        raise FrameError("buffers need a binary frame")
    return _message(envelope, (), session)


def decode_binary(frame: bytes, session: str) -> ClientMessage:
    """Read a client's binary frame, as `decode_text` does, with its buffers."""
    if len(frame) < 8:
        raise FrameError("a binary frame starts with its number of parts and their offsets")
    (count,) = unpack_from(">I", frame)
    # Both bounds are checked before the table is read: the client has chosen `count`.
    if not 0 < count <= len(frame) // 4 - 1:
        raise FrameError("the table of offsets does not fit the frame")
    if count > MAX_PARTS:
        raise FrameError(f"a frame has at most {MAX_PARTS} parts")
    offsets = unpack_from(f">{count}I", frame, 4)
    previous = 4 * (count + 1)
    for offset in (*offsets, len(frame)):
        if offset < previous:
            raise FrameError("offsets overlap, run backwards or pass the frame's end")
        previous = offset
    view = memoryview(frame)
    bounds = (*offsets, len(frame))
    parts = [view[start:end] for start, end in zip(bounds, bounds[1:])]
    return _message(_decode_envelope(parts[0]), parts[1:], session)


def _decode_envelope(text: Buffer) -> _Envelope:
    try:
        return _envelope_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        envelope = _decode_leniently(text) if len(text) <= LENIENT_BYTES else None
        if envelope is None:
            raise FrameError(f"not a Jupyter message: {error}") from None
        return envelope


def _decode_leniently(text: Buffer) -> _Envelope | None:
    # Python clients send NaN and escaped lone surrogates. msgspec refuses both; Jupyter servers
    # and kernels take them.
    try:
        fields = json.loads(str(text, "utf-8"))
        channel = fields.pop("channel", None)
        parts = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}
        return msgspec.convert({"channel": channel, **parts}, _Envelope)
    except (ValueError, TypeError, AttributeError, RecursionError):  # DecodeError is a ValueError
        return None


def _message(
    envelope: _Envelope, buffers: list[memoryview] | tuple[()], session: str
) -> ClientMessage:
    header_part, header = complete_header(bytes(envelope.header), session)
    parts: list[Buffer] = [
        header_part,
        *(
            _object(name, raw)
            for name, raw in (
                ("parent_header", envelope.parent_header),
                ("metadata", envelope.metadata),
                ("content", envelope.content),
            )
        ),
        *buffers,
    ]
    return ClientMessage("shell" if envelope.channel is None else envelope.channel, header, parts)


def _object(name: str, raw: msgspec.Raw) -> bytes:
    """A part as bytes, with ``{}`` for ``null``. Raises `MalformedMessage` if it is no object."""
    part = bytes(raw)
    if part == b"null":
        return b"{}"
    if not part.startswith(b"{"):
        raise MalformedMessage(f"{name}: must be an object")
    try:
        part.decode()
    except UnicodeDecodeError:
        raise MalformedMessage(f"{name}: is not UTF-8") from None
    return part

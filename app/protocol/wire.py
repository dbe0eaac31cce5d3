"""ZMQ multipart messages of a kernel: ``[identities…, <IDS|MSG>, signature, parts…]``.

Messages from a kernel are checked once, when they arrive. So all parts that later code meets are
UTF-8, and small parts are JSON [Jupyter messaging protocol, "The wire protocol"].
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Final

import msgspec

from . import v1
from .compose import make_message
from .messages import (
    Buffer,
    ClientMessage,
    Header,
    MalformedMessage,
    Message,
    decode_header,
    decode_parent,
)
from .signing import Signer

__all__ = [
    "DELIMITER",
    "LEADING_FRAMES",
    "BadSignature",
    "MalformedMessage",
    "pack",
    "split",
    "unpack",
]

DELIMITER: Final = b"<IDS|MSG>"
"""The frame between identities and signature: the second on iopub, behind the topic; else the
first, as ZMQ has taken the identities off."""

LEADING_FRAMES: Final = {"iopub": 6, "shell": 5, "control": 5, "stdin": 5}
"""How many frames come before a message's content: the delimiter, the signature and three parts,
and on iopub the topic before them."""

# A full syntax check costs more than 1 ms/MB, as much as all other work on a large message. So a
# part above this size is only checked to be UTF-8 and to look like an object.
FULL_CHECK_BYTES: Final = 4096

PIECE_BYTES: Final = 65536

JOINED_BYTES: Final = 65536
"""Output with more content than this is not joined into one frame, but passed on in pieces."""

_raw_decoder: Final = msgspec.json.Decoder(msgspec.Raw)


class BadSignature(MalformedMessage):
    """The signature of a message does not match its parts."""


def pack(message: ClientMessage, signer: Signer) -> list[Buffer]:
    """The signed ZMQ frames of a client's message to a kernel."""
    parts = message.parts
    return [DELIMITER, signer.sign(parts[:4]), *parts]


def split(channel: str, frames: Sequence[Buffer]) -> list[Sequence[Buffer]]:
    """Split frames that were read as one message although they are several.

    The reader expects `LEADING_FRAMES` before the content, so a message with fewer frames is read
    together with the next (`app.keeper.sockets.read_frames`). The delimiters tell them apart.
    Frames before a delimiter that are no topic stay with the message before.
    """
    delimiters = [index for index, frame in enumerate(frames) if frame == DELIMITER]
    if len(delimiters) < 2:
        return [frames]
    # Some kernels send no topic, so there may be fewer frames before the first delimiter.
    before = min(delimiters[0], LEADING_FRAMES[channel] - 5)
    edges = [0, *(index - before for index in delimiters[1:]), len(frames)]
    return [frames[start:end] for start, end in zip(edges, edges[1:])]


def unpack(channel: str, frames: Sequence[Buffer], signer: Signer) -> Message:
    """Read one message that a kernel sent on ``channel``.

    Invalid UTF-8 is replaced by U+FFFD. Content that is not JSON is replaced too: a reply becomes
    an error reply, as a client waits for it; output becomes a notice on stderr. Raises
    `BadSignature`, or `MalformedMessage` if the frames are no message, or a header cannot be
    understood.
    """
    try:
        start = frames.index(DELIMITER)
    except ValueError:
        raise MalformedMessage("no <IDS|MSG> delimiter") from None
    parts = frames[start + 2 :]
    if len(parts) < 4:
        raise MalformedMessage(f"{len(frames) - start - 1} frames after the delimiter, not 5")
    if channel == "iopub" and len(parts[3]) > JOINED_BYTES:
        large = _large(channel, parts, frames[start + 1], signer)
        if large is not None:
            return large
    # The frame is built before the signature is verified, which is computed over the frame's own
    # bytes. Nothing reads these bytes before that.
    frame, bounds = v1.encode(channel, parts)
    # The four signed parts lie behind each other in the frame, so no second copy is made.
    signed = memoryview(frame)[bounds[1] : bounds[5]]
    if not signer.verify(frames[start + 1], signed):
        raise BadSignature("the signature does not match")
    try:
        _check_utf8(signed)
    except UnicodeDecodeError:
        parts = [bytes(part).decode("utf-8", "replace").encode() for part in parts[:4]] + [
            *parts[4:]
        ]
        frame, _ = v1.encode(channel, parts)
    header, parent = decode_header(parts[0]), decode_parent(parts[1])
    if not header.msg_type:
        raise MalformedMessage("header: msg_type is missing")
    if not _is_object(parts[3]):
        return _replacement(channel, header, parts[1])
    if parts[2] != b"{}" and not _is_object(parts[2]):
        frame, _ = v1.encode(channel, [*parts[:2], b"{}", *parts[3:]])
    return Message(channel, frame, header, parent)


def _large(
    channel: str, parts: Sequence[Buffer], signature: Buffer, signer: Signer
) -> Message | None:
    """A message with large content, which is not copied; None if a part of it must be changed.

    New memory of that size costs several times what it costs to read the content.
    """
    # The signature covers the four JSON parts alone: buffers are as the wire has them.
    if not signer.verify(signature, *parts[:4]):
        raise BadSignature("the signature does not match")
    try:
        for part in parts[:4]:
            _check_utf8(memoryview(part))
    except UnicodeDecodeError:
        return None
    header, parent = decode_header(parts[0]), decode_parent(parts[1])
    # The keeper reads the content of a status, so that one is joined into a frame.
    if header.msg_type in ("", "status") or not (_is_object(parts[2]) and _is_object(parts[3])):
        return None
    message = Message(channel, v1.begin(channel, parts), header, parent)
    message.rest = tuple(parts[3:])
    return message


def _check_utf8(view: memoryview) -> None:
    """Raise `UnicodeDecodeError` unless a part is UTF-8.

    Large parts are checked piece by piece: to make one string of them costs several times as much.
    """
    size = len(view)
    if size <= PIECE_BYTES:
        str(view, "utf-8")
        return
    start = 0
    while start < size:
        end = start + PIECE_BYTES
        # A character that the end of a piece cuts in two is read again with the next piece. In the
        # last piece (``final``) such a character is an error.
        start += codecs.utf_8_decode(view[start:end], "strict", end >= size)[1]


def _is_object(part: Buffer) -> bool:
    """Whether a part is a JSON object; for a large part, whether it looks like one."""
    if part == b"{}":
        return True
    size = len(part)
    if size < 2 or part[0] != 0x7B or part[-1] != 0x7D:
        return _is_lenient_object(part)
    if size > FULL_CHECK_BYTES:
        return True
    try:
        _raw_decoder.decode(part)
    except (msgspec.MsgspecError, RecursionError):
        return _is_lenient_object(part)
    return True


def _is_lenient_object(part: Buffer) -> bool:
    # Python kernels send NaN and lone surrogates, and some kernels white space around the object.
    # These parts are passed on as they are, as every Jupyter server does.
    try:
        # From text, as json.loads would take bytes in UTF-16 too.
        return isinstance(json.loads(str(part, "utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _replacement(channel: str, header: Header, parent: Buffer) -> Message:
    """The message that clients get in place of one whose content is no JSON object.

    Raises `MalformedMessage` for a type that has no replacement, which is then dropped.
    """
    session = header.session or ""
    problem = f"the kernel sent a {header.msg_type} whose content is not JSON"
    if channel in ("shell", "control"):
        error = {"status": "error", "ename": "InvalidMessage", "evalue": problem, "traceback": []}
        return make_message(channel, header.msg_type, error, session=session, parent=parent)
    if channel == "iopub" and header.msg_type != "status":
        notice = {"name": "stderr", "text": f"kernelkeep: {problem}; it was dropped\n"}
        return make_message(channel, "stream", notice, session=session, parent=parent)
    raise MalformedMessage(f"{header.msg_type}: content is not JSON")

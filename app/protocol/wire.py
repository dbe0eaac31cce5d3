"""ZMQ multipart messages of a kernel: ``[identities…, <IDS|MSG>, signature, parts…]``.

From a kernel they are checked once, on arrival, so that nothing behind this module meets a part
that is not UTF-8, or a small one that is not JSON [Jupyter messaging protocol, "The wire
protocol"].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import msgspec

from app.protocol import v1
from app.protocol.compose import make_message
from app.protocol.messages import (
    Buffer,
    ClientMessage,
    Header,
    MalformedMessage,
    Message,
    decode_header,
)
from app.protocol.signing import Signer

__all__ = ["BadSignature", "MalformedMessage", "pack", "unpack"]

DELIMITER: Final = b"<IDS|MSG>"

# A full syntax check costs more than 1 ms/MB, as much as all the rest of a large message's way;
# above this size a part is only checked to be UTF-8 and to look like an object.
FULL_CHECK_BYTES: Final = 4096

_raw_decoder: Final = msgspec.json.Decoder(msgspec.Raw)


class BadSignature(MalformedMessage):
    """A message whose signature is not that of its parts."""


def pack(message: ClientMessage, signer: Signer) -> list[Buffer]:
    """The frames that carry a client's message to its kernel, signed."""
    parts = message.parts
    return [DELIMITER, signer.sign(parts[:4]), *parts]


def unpack(channel: str, frames: Sequence[Buffer], signer: Signer) -> Message:
    """Read one message that a kernel sent on ``channel``.

    Parts with invalid UTF-8 are repaired with U+FFFD. Content that is not JSON is replaced: a
    reply becomes an error reply (its requester waits for one), output becomes a notice on stderr.
    Raises `BadSignature`, or `MalformedMessage` when it is no message at all or a header cannot be
    understood.
    """
    try:
        start = frames.index(DELIMITER)
    except ValueError:
        raise MalformedMessage("no <IDS|MSG> delimiter") from None
    if len(frames) < start + 6:
        raise MalformedMessage(f"{len(frames) - start - 1} frames after the delimiter, not 5")
    parts = frames[start + 2 :]
    frame, bounds = v1.encode(channel, parts)
    # The four signed parts lie behind each other in the frame, so no second copy is made.
    signed = memoryview(frame)[bounds[1] : bounds[5]]
    if not signer.verify(frames[start + 1], signed):
        raise BadSignature("the signature does not match")
    if not _is_utf8(signed):
        parts = [bytes(part).decode("utf-8", "replace").encode() for part in parts[:4]] + [
            *parts[4:]
        ]
        frame, bounds = v1.encode(channel, parts)
    header, parent = decode_header(parts[0]), decode_header(parts[1], "parent_header")
    if not header.msg_type:
        raise MalformedMessage("header: msg_type is missing")
    if not _is_object(parts[3]):
        return _replacement(channel, header, parts[1])
    if not _is_object(parts[2]):
        frame, bounds = v1.encode(channel, [*parts[:2], b"{}", *parts[3:]])
    return Message(channel, frame, bounds, header, parent)


def _is_utf8(view: memoryview) -> bool:
    try:
        str(view, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_object(part: Buffer) -> bool:
    """Whether a part is a JSON object; of a large part, whether it looks like one."""
    if part == b"{}":
        return True
    view = memoryview(part)
    if len(view) < 2 or view[0] != 0x7B or view[-1] != 0x7D:
        return _is_lenient_object(view)
    if len(view) > FULL_CHECK_BYTES:
        return True
    try:
        _raw_decoder.decode(view)
    except (msgspec.MsgspecError, RecursionError):
        return _is_lenient_object(view)
    return True


def _is_lenient_object(view: memoryview) -> bool:
    # Python kernels send NaN and lone surrogates, some kernels white space around the object:
    # passed on as they are, as every Jupyter server does.
    try:
        # As text: from bytes it would take UTF-16 too.
        return isinstance(json.loads(str(view, "utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _replacement(channel: str, header: Header, parent: Buffer) -> Message:
    """What clients get in place of a message whose content is not a JSON object."""
    session = header.session or ""
    problem = f"the kernel sent a {header.msg_type} whose content is not JSON"
    if channel in ("shell", "control"):
        error = {"status": "error", "ename": "InvalidMessage", "evalue": problem, "traceback": []}
        return make_message(channel, header.msg_type, error, session=session, parent=parent)
    if channel == "iopub" and header.msg_type != "status":
        notice = {"name": "stderr", "text": f"kernelkeep: {problem}; it was dropped\n"}
        return make_message(channel, "stream", notice, session=session, parent=parent)
    raise MalformedMessage(f"{header.msg_type}: content is not JSON")

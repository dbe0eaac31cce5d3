"""The content of a kernel's messages as plain objects that can be written as JSON again.

Python kernels send NaN and escaped lone surrogates, which strict JSON parsers refuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from ...protocol.messages import Buffer, Message

__all__ = ["content_of", "count_of", "raw_json", "text_of"]

_decode = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


def content_of(message: Message) -> dict[str, Any]:
    """The content of a message; empty if it is no JSON object."""
    content = _plain(message.part(3))
    return content if isinstance(content, dict) else {}


def raw_json(part: Buffer) -> msgspec.Raw:
    """A part as strict JSON: as it is, or with null for NaN and U+FFFD for a lone surrogate."""
    try:
        return msgspec.Raw(_decode_raw(part))
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(_leniently(part)))


def text_of(value: Any) -> str:
    """A text of a message, which kernels may send as a list of lines; empty for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(line, str) for line in value):
        return "".join(value)
    return ""


def count_of(value: Any) -> int | None:
    """An ``execution_count`` of a message; None for what is no number, or has more than 64 bits.

    User code may set the count, and a larger one cannot be stored.
    """
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def _plain(part: Buffer) -> Any:
    try:
        return _decode(part)
    except (msgspec.MsgspecError, RecursionError):
        return _leniently(part)


def _leniently(part: Buffer) -> Any:
    try:
        return _clean(json.loads(str(part, "utf-8"), parse_constant=lambda _name: None))
    except (ValueError, RecursionError):
        return {}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None  # a number such as 1e999, which JSON can write and a float cannot hold
    return value

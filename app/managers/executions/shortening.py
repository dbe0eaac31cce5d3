"""Shortening outputs, so that the parts that tell most of an error or a result stay.

Sizes are in bytes of the JSON that is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from .contents import text_of

__all__ = ["LEAST_ERROR", "refer", "shortened_data", "shortened_error", "size_of"]

LEAST_ERROR: Final = 400
"""An error is not made shorter than this: its name and the end of its traceback fit in it."""

NAME_BYTES: Final = 100
"""The bytes of an error's name that stay: it is the name of a class, rarely longer."""

NOTES_BYTES: Final = 60
"""The bytes of the metadata that name references, without their media types and sizes."""

DIGITS: Final = 20
"""The bytes that the size of one reference takes, with the punctuation around it."""

MARK: Final = "…"
"""What stands where text is left out."""

_encode = msgspec.json.Encoder().encode

Fields = dict[str, Any]


def size_of(value: Any) -> int:
    """The bytes of a value in JSON."""
    return len(_encode(value))


def shortened_error(fields: Fields, room: int) -> Fields:
    """The fields of an ``error`` in ``room`` bytes, or in `LEAST_ERROR` if that is more.

    The error's name stays, the beginning of its value, and the end of its traceback.
    """
    # The name gets its room first, then the value. The traceback gets the rest, for its last lines:
    # they tell most.
    if size_of(fields) <= max(room, LEAST_ERROR):
        return fields
    lines: list[str] = fields["traceback"]
    short = {**fields, "ename": _beginning(fields["ename"], NAME_BYTES), "evalue": ""}
    short["traceback"] = []
    left = max(room, LEAST_ERROR) - size_of(short)
    whole = size_of(lines) - 2  # without the brackets
    short["evalue"] = _beginning(fields["evalue"], max(left // 3, left - whole))
    short["traceback"] = _last(lines, max(room, LEAST_ERROR) - size_of(short))
    return short


def shortened_data(fields: Fields, room: int, url: Callable[[str], str]) -> Fields:
    """The fields of a display or a result in about ``room`` bytes, though they may take more.

    Data such as images are replaced by their URLs, which ``url`` makes from their media types. Of
    plain text the beginning and the end stay.
    """
    data: dict[str, Any] = {**fields["data"]}
    notes = _object(fields["metadata"].get("kernelkeep"))
    references, texts = {**_object(notes.get("references"))}, {**_object(notes.get("shortened"))}

    def made() -> Fields:
        found = {"references": references, "shortened": texts}
        told = {"kernelkeep": {name: value for name, value in found.items() if value}}
        return {**fields, "data": data, "metadata": {**fields["metadata"], **told}}

    sizes = {mime: size_of(value) for mime, value in data.items()}
    whole = size_of(made()) + NOTES_BYTES
    for mime in sorted(data, key=sizes.__getitem__, reverse=True):
        if whole <= room:
            return made()
        if mime != "text/plain" and mime not in references:
            refer(data, references, mime, url(mime))
            # Counted rather than encoded anew for each media type, which would take too long.
            whole += size_of(data[mime]) - sizes[mime]
            whole += size_of(mime) + DIGITS if mime in references else 0
    plain = text_of(data.get("text/plain"))
    if plain and "text/plain" not in references and size_of(made()) > room:
        texts.setdefault("text/plain", len(plain.encode()))
        data["text/plain"] = ""
        data["text/plain"] = _ends(plain, room - size_of(made()))
    short = made()
    if size_of(short) > room:  # the kernel's own metadata are large
        short["metadata"] = {"kernelkeep": short["metadata"].get("kernelkeep", {})}
    return short


def refer(data: dict[str, Any], references: dict[str, int], mime: str, url: str) -> None:
    """Replace the data of a media type by its URL, if that is shorter, and note its size."""
    value = data[mime]
    if size_of(value) > size_of(url):
        references[mime] = len(value.encode()) if isinstance(value, str) else size_of(value)
        data[mime] = url


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _bytes_of(text: str) -> int:
    return size_of(text) - 2  # without the quotation marks


def _beginning(text: str, room: int) -> str:
    """The beginning of a text that fits into ``room`` bytes."""
    if _bytes_of(text[: room + 1]) <= room:
        return text
    return text[: _characters(text, room - _bytes_of(MARK))] + MARK


def _end(text: str, room: int) -> str:
    """The end of a text that fits into ``room`` bytes."""
    if _bytes_of(text[-(room + 1) :]) <= room:
        return text
    count = _characters(text[: -(max(room, 0) + 1) : -1], room - _bytes_of(MARK))
    return MARK + text[len(text) - count :]


def _ends(text: str, room: int) -> str:
    """The two ends of a text that fit into ``room`` bytes together."""
    if _bytes_of(text[: room + 1]) <= room:
        return text
    room -= _bytes_of(MARK)
    first = _characters(text, room // 2)
    last = _characters(text[: -(max(room, 0) + 1) : -1], room - room // 2)
    return text[:first] + MARK + text[len(text) - last :]


def _characters(text: str, room: int) -> int:
    """How many characters from the beginning of a text fit into ``room`` bytes."""
    # By halving: a character takes one to six bytes in JSON.
    low, high = 0, max(0, min(len(text), room))  # each takes a byte at least
    while low < high:
        middle = (low + high + 1) // 2
        if _bytes_of(text[:middle]) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _last(lines: list[str], room: int) -> list[str]:
    """The last lines that fit into ``room`` bytes; the first of them may be cut at its front."""
    shown: list[str] = []
    for line in reversed(lines):
        left = room - (3 if shown else 2)  # for the quotation marks, and a comma
        short = _end(line, left)
        if left < _bytes_of(short):
            break
        shown.append(short)
        if short is not line:
            break
        room = left - _bytes_of(line)
    return shown[::-1]

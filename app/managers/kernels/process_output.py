"""What a kernel's processes have written to stdout and stderr themselves, as people read it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["MOST_BYTES", "end_of"]

MOST_BYTES: Final = 64 * 1024
"""How many bytes of the end of the output are returned, at the most."""


def end_of(path: Path, most: int = MOST_BYTES) -> str:
    """The end of the output whose file this is, with U+FFFD for bytes that are not UTF-8.

    The end is empty where there is no file: the kernel has written nothing, or runs on another
    host. The keeper may begin a new file between the two reads here. Then the result lacks the text
    that came between them, which the next call has.
    """
    # The older file first: were the newer file read first, and then become the older one, its text
    # would come twice.
    before = _end(path.with_name(f"{path.name}.1"), most + 1)
    whole = before + _end(path, most + 1)
    text = whole[-most:].decode("utf-8", "replace")
    # The cut may go through a character.
    return text.lstrip("\ufffd") if len(whole) > most else text


def _end(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            return file.read(most)
    except FileNotFoundError:
        return b""

"""The content of files: as bytes on disk, and as text or base64 in JSON. All functions block."""

from __future__ import annotations

import os
import stat
from base64 import b64decode
from typing import Any, BinaryIO, Final

from .errors import ContentsTooLarge, InvalidContents
from .tree import Place

__all__ = ["as_text", "data_of_file", "encode", "open_file", "read"]

MAX_READ_BYTES: Final = 64 * 2**20
"""The largest file whose content is put into a JSON answer; ``/files/`` has larger ones."""


def open_file(place: Place) -> BinaryIO:
    """Open an existing file to read its bytes; the caller closes it. May raise `OSError`."""
    # Since the name was looked up, another process may have put a link or a pipe in its place.
    # The flags refuse to follow a link and to wait for a writer of a pipe.
    descriptor = os.open(place.target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidContents(f"{place.path} is no file", "bad type")
    return os.fdopen(descriptor, "rb")


def read(file: BinaryIO, status: os.stat_result, path: str) -> bytes:
    """The bytes of a file of this status. Raises `ContentsTooLarge`."""
    # A file may grow between its status and the read: one byte more than is allowed tells so.
    data = file.read(MAX_READ_BYTES + 1) if status.st_size <= MAX_READ_BYTES else None
    if data is None or len(data) > MAX_READ_BYTES:
        raise ContentsTooLarge(
            f"{path} has more than {MAX_READ_BYTES} bytes: fetch it from /files/{path}"
        )
    return data


def as_text(data: bytes, path: str) -> str:
    """The text that a file holds as UTF-8. Raises `InvalidContents`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidContents(f"{path} is not UTF-8 encoded", "bad format") from None


def data_of_file(content: Any, form: str | None) -> bytes:
    """The bytes to save for ``content`` in the format ``form``. Raises `InvalidContents`."""
    if form not in ("text", "base64"):
        raise InvalidContents("Must specify format of file contents as 'text' or 'base64'")
    if not isinstance(content, str):
        raise InvalidContents("content: must be a string")
    if form == "text":
        return encode(content)
    try:
        return b64decode("".join(content.split()), validate=True)
    except ValueError:
        raise InvalidContents("content: is not base64") from None


def encode(text: str) -> bytes:
    """The text as UTF-8. Raises `InvalidContents`."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidContents("content: is not valid Unicode") from None

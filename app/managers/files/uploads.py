"""Files that clients send in chunks: JupyterLab does so above a megabyte. All of it blocks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import InvalidContents
from .writing import finish, open_new, partial_beside

__all__ = ["LAST", "Uploads"]

LAST: Final = -1
"""The number of the last chunk; the first one is 1."""

MAX_UPLOADS: Final = 64
"""Uploads under way at a time; beyond, the one that has stood still for longest is dropped."""

IDLE_SECONDS: Final = 600.0
"""After which an upload that has stood still is dropped when another begins."""

CLOSE_SECONDS: Final = 1.0


class _Upload:
    def __init__(self, target: Path) -> None:
        self.partial = partial_beside(target)
        self.file: BinaryIO = open_new(self.partial)
        self.next_chunk = 1
        self.touched = time.monotonic()

    def drop(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)


class Uploads:
    """The uploads under way, by the file that each is to become.

    The file is in its place, whole, when the last chunk has come.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[Path, _Upload] = {}

    def add(self, target: Path, number: int, data: bytes) -> os.stat_result:
        """Add a chunk; the status of what has arrived so far, or of the finished file.

        A first chunk begins anew. Raises `InvalidContents` for a chunk that is not the next one,
        and `OSError`, after which the upload is dropped.
        """
        with self._lock:
            upload = self._begin(target) if number == 1 else self._uploads.get(target)
            if upload is None or number not in (LAST, upload.next_chunk):
                raise InvalidContents("chunk: not the next one of an upload that is under way")
            try:
                upload.file.write(data)
                upload.next_chunk += 1
                upload.touched = time.monotonic()
                if number != LAST:
                    upload.file.flush()
                    return os.fstat(upload.file.fileno())
                finish(upload.file, target)
                os.replace(upload.partial, target)
            except BaseException:
                self._drop(target)
                raise
            self._uploads.pop(target).file.close()
        return target.stat()

    def close(self) -> None:
        """Drop what is under way, unless the disk hangs in the middle of it."""
        if self._lock.acquire(timeout=CLOSE_SECONDS):
            for target in [*self._uploads]:
                self._drop(target)
            self._lock.release()

    def _begin(self, target: Path) -> _Upload:
        oldest_first = sorted(self._uploads, key=lambda key: self._uploads[key].touched)
        too_old = time.monotonic() - IDLE_SECONDS
        spare = len(self._uploads) - MAX_UPLOADS + 1
        for index, other in enumerate(oldest_first):
            if other == target or index < spare or self._uploads[other].touched < too_old:
                self._drop(other)
        upload = self._uploads[target] = _Upload(target)
        return upload

    def _drop(self, target: Path) -> None:
        self._uploads.pop(target).drop()

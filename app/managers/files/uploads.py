"""Files that clients send in chunks, as JupyterLab does above a megabyte. All functions block."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final

from .errors import InvalidContents
from .writing import finish, open_new, partial_beside

__all__ = ["LAST", "Uploads"]

LAST: Final = -1
"""The number of the last chunk; the first one is 1."""

MAX_UPLOADS: Final = 64
"""How many uploads may be incomplete. One more drops the upload whose last chunk is oldest."""

IDLE_SECONDS: Final = 600.0
"""An upload without a chunk for so long is dropped when another begins."""

CLOSE_SECONDS: Final = 1.0
"""How long `Uploads.close` waits for a chunk that is being written."""


class _Upload:
    def __init__(self, target: Path) -> None:
        self.partial = partial_beside(target)
        self.file: BinaryIO = open_new(self.partial)
        self.next_chunk = 1
        self.touched = time.monotonic()

    def drop(self) -> None:
        # On a full disk the close fails again, as it writes buffered bytes: the file is removed all
        # the same. If it cannot be, the upload that it should make room for must not fail by that.
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink()


class Uploads:
    """The incomplete uploads, by the file that each will become.

    The chunks go to an unfinished file, which is renamed when the last one has come. One lock
    covers every chunk: two threads that have chunks of the same upload write one after the other.
    """

    def __init__(self) -> None:
        # One lock for all uploads: a chunk has a megabyte or so and is soon written. A disk that
        # hangs holds up all threads that have chunks; the other threads serve other requests.
        self._lock = threading.Lock()
        self._uploads: dict[Path, _Upload] = {}

    def add(
        self, target: Path, number: int, data: bytes, guard: AbstractContextManager[None]
    ) -> os.stat_result:
        """Add a chunk; returns the status of the unfinished file, or of the finished one.

        Chunk 1 begins the upload anew. ``guard`` is held while the finished file is put in its
        place. Raises `InvalidContents` for a chunk that is not the next one, and `OSError` or what
        ``guard`` raises, after which the upload is dropped.
        """
        with self._lock:
            # An upload is known by its file alone. If two clients send the same file at the same
            # time, the later chunk 1 begins the upload anew, and a chunk of the earlier client is
            # refused unless it is the next one.
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
                with guard:
                    os.replace(upload.partial, target)
            except BaseException:
                self._drop(target)
                raise
            self._uploads.pop(target).file.close()
        return target.stat()

    def close(self) -> None:
        """Drop all incomplete uploads, unless a thread hangs while it writes a chunk."""
        # Without the lock nothing may be dropped: that thread goes on to write to its file.
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

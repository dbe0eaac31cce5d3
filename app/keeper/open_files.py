"""How many files of logs are open at once, for a keeper's writers and for a server's readers."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Final, Protocol

__all__ = ["OPEN_FILES", "Holder", "OpenFiles"]

OPEN_FILES: Final = 256
"""How many logs have a file open. Thousands of silent kernels need no descriptors."""


class Holder(Protocol):
    """Something that has a file open, and can open it again."""

    def close_file(self) -> None:
        """Close the file until it is needed."""


class OpenFiles:
    """The open files of many logs: ``most`` at the most, as the rest can be opened again.

    It has weak references only: a holder that nobody else needs goes, and its place is free.
    """

    def __init__(self, most: int = OPEN_FILES) -> None:
        self._most = most
        # The holders whose file is open, the longest open first.
        self._holders: weakref.WeakKeyDictionary[Holder, None] = weakref.WeakKeyDictionary()

    def open(self, holder: Holder, path: Path, flags: int) -> int:
        """Open a file for a holder, and return its descriptor. A link is not followed.

        If too many files are open, or no descriptors are left, holders whose files are open for
        longest have to close them. The holder calls `closed` in the end. Raises `OSError`.
        """
        # A kernel of the same user may have put a named pipe in the file's place: nobody waits for
        # its other end.
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._holders:
                raise
            # Half of the files are closed: sockets and new processes need descriptors as well.
            self._close_until(len(self._holders) // 2)
            descriptor = os.open(path, flags)
        # This comes behind the open: if a file cannot be opened, no other holder loses its own. The
        # holder itself may be the one whose earlier file is closed here: it gets the new one.
        self._close_until(self._most - 1)
        self._holders[holder] = None
        return descriptor

    def closed(self, holder: Holder) -> None:
        """Note that a holder has closed its file."""
        self._holders.pop(holder, None)

    def _close_until(self, count: int) -> None:
        while len(self._holders) > count:
            first = next(iter(self._holders), None)
            if first is None:  # those that are left are gone: they are counted a moment longer
                return
            # Taken out first: `close_file` may call `closed`, which finds it gone.
            del self._holders[first]
            first.close_file()

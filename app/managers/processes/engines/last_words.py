"""The last output of a job, and what all engines say of a job's end in the same words."""

from __future__ import annotations

import re
import signal
from typing import Final

import msgspec

from ..hosts.errors import HostUnreachable, HostUnusable, HostWithoutPython
from ..hosts.pythons import MARK

__all__ = ["WORDS", "is_full", "is_without_program", "own_word", "with_exit"]

WORDS: Final = 2000
"""How many characters of an engine's words, or of a job's output, go into a kernel's model."""

_NO_PROGRAM: Final = re.compile(r"executable file.* not found|no such file or directory", re.I)
_FULL: Final = re.compile(r"no space left on device|disk quota exceeded", re.I)
_ERRORS: Final = {error.code: error for error in (HostUnreachable, HostUnusable, HostWithoutPython)}


class _Told(msgspec.Struct):
    failed: str
    text: str


def own_word(said: str) -> HostUnusable | None:
    """The error that a job's program has written (`job.tell`), if its output has one."""
    for line in said.splitlines():
        if line.startswith(MARK):
            # The job's kernel may write such lines, too, with any text.
            try:
                told = msgspec.json.decode(line.removeprefix(MARK), type=_Told)
            except msgspec.MsgspecError:
                continue
            return _ERRORS.get(told.failed, HostUnusable)(told.text[:WORDS])
    return None


def is_full(text: str) -> bool:
    """Whether a text says that a disk has no room."""
    return _FULL.search(text) is not None


def is_without_program(text: str) -> bool:
    """Whether a text says that the program of a container is not in its image."""
    return _NO_PROGRAM.search(text) is not None


def with_exit(code: object) -> str:
    """How a container has ended, by its exit status as the engine tells it."""
    if not isinstance(code, int):
        return "has ended"
    # Engines tell a signal as a shell does; a status may be above 128 without being one.
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"ended with status {code}"
    return f"was killed by signal {code - 128} ({name})"

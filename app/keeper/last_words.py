"""The last useful lines of a process's output, which mostly tell why the process ended.

Interpreters write much around the one line that tells why: the frames of a traceback, the stacks of
all threads. The file of the output has all lines; people are shown those that are left here.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["last_words"]

MAX_LINES: Final = 12
MAX_CHARS: Final = 2000
MAX_FRAMES: Final = 3  # of the stack of a crash

_IPYTHON_NOTE: Final = re.compile(
    r"NOTE: When using the `ipython kernel` entry point.*?"
    r"(?:To connect another client to this kernel, use:\n\s*--existing \S*\n?|\Z)",
    re.DOTALL,
)
"""A note that ipykernel writes when it takes its parent for a terminal."""

_DEBUGGER_WARNING: Final = re.compile(r"^\d+\.\d+s - .*\n?", re.MULTILINE)
"""A warning of pydevd about frozen modules."""

_TRACEBACK: Final = "Traceback (most recent call last):"

_STACK: Final = re.compile(
    r"(?:(Current thread 0x[0-9a-f]+.*|Stack)|Thread 0x[0-9a-f]+.*) \(most recent call first\):"
)
"""The head of a thread's stack; the group matches if the thread is the one that crashed."""

_FRAME: Final = re.compile(r'\s+(?:File ".*", line \d+|\.\.\.|<.*>|Binary file )')
_EXTENSIONS: Final = ("Extension modules: ", "Python runtime state: ")


def last_words(text: str, lines: int = MAX_LINES) -> str:
    """The last ``lines`` useful lines of ``text``, of at most `MAX_CHARS` characters together.

    A Python traceback becomes its last line, the exception. A crash of the interpreter becomes its
    ``Fatal Python error`` and the innermost frames. The result is empty if no line is useful.
    """
    text = _DEBUGGER_WARNING.sub("", _IPYTHON_NOTE.sub("", text))
    useful = _without_stacks(_without_frames(text.splitlines()))
    words = "\n".join([line for line in useful if line.strip()][-lines:]).strip()
    return words if len(words) <= MAX_CHARS else f"…{words[-MAX_CHARS:]}"


def _without_frames(lines: list[str]) -> list[str]:
    """The lines, with each traceback cut to its exception: lines indented below its head go."""
    kept = []
    indent = -1  # the indentation of the traceback that a line is in; -1 outside of any
    for line in lines:
        own = len(line) - len(line.lstrip())
        if line.strip() == _TRACEBACK:
            indent = own
        elif indent == -1 or (line.strip() and own <= indent):
            indent = -1
            kept.append(line)
    return kept


def _without_stacks(lines: list[str]) -> list[str]:
    """The lines, with the stacks that ``faulthandler`` writes cut to where the crash was."""
    kept = []
    in_stack, wanted = False, 0
    for line in lines:
        if head := _STACK.match(line):
            in_stack, wanted = True, MAX_FRAMES if head[1] else 0
        elif in_stack and _FRAME.match(line):
            if wanted and 'File "' in line:
                wanted -= 1
                kept.append(line)
        elif line.strip() and not line.startswith(_EXTENSIONS):
            in_stack = False
            kept.append(line)
    return kept

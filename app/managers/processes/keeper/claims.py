"""Checks of a keeper's answers before they are believed: which kernel, and which numbers.

A keeper on another host may have been tampered with there. It can then lie about its own kernels,
but not about those of other keepers, and no answer of it may break this server.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ....keeper.hearings import Heard
from ....keeper.protocol import Fields, Garbled
from ....protocol.link import Bell
from .kept import Kept

__all__ = ["MAX_NUMBER", "check_bell", "check_exit", "heard_of", "kept_of"]

MAX_NUMBER: Final = 2**48
"""The greatest number of a message: no log comes near."""

MAX_HANDLE: Final = 2**32 - 1
MAX_TEXT: Final = 256
MAX_CODE: Final = 2**32
"""The greatest exit status: on Windows they are unsigned, of 32 bits."""


class _Exit(msgspec.Struct):
    kernel_id: str
    pid: int
    code: int
    oom: bool = False


def heard_of(answer: Any, kernel_id: str, known: tuple[int, int] = (1, 0)) -> Heard:
    """A keeper's answer about a kernel that it is to hear, checked.

    ``known`` is the place in the kernel's log that was known when the keeper was asked. Raises
    `Garbled` if the answer is of another kernel, or the log cannot be as it says.
    """
    try:
        heard = msgspec.convert(answer, Heard)
    except msgspec.ValidationError as error:
        raise Garbled(
            f"kernel {kernel_id}: what is told of its log makes no sense: {error}"
        ) from None
    if heard.kernel_id != kernel_id:
        raise Garbled(f"asked for kernel {kernel_id}, it tells of another")
    if max(len(heard.session), len(heard.epoch)) > MAX_TEXT or not 0 <= heard.handle <= MAX_HANDLE:
        raise Garbled(f"kernel {kernel_id}: what is told of its log makes no sense")
    check_bell(heard.bell, kernel_id, known)
    return heard


def check_bell(bell: Bell, kernel_id: str, known: tuple[int, int]) -> None:
    """Raise `Garbled` for a bell that cannot be true of a log that was ``known`` to go so far."""
    # The end of a log never goes back, and its beginning is never behind its end. Numbers that no
    # log reaches would make a gap that no record ever closes.
    numbers = (*bell.first, *bell.end, *bell.tip, bell.taken)
    if not (
        known[0] <= bell.end[0]
        and bell.first <= bell.end
        and all(0 <= number < MAX_NUMBER for number in numbers)
    ):
        raise Garbled(
            f"kernel {kernel_id}: its log, which went to number {known[0]}, "
            f"is said to go from {bell.first[0]} to {bell.end[0]}"
        )


def kept_of(answer: Any, kernel_id: str) -> Kept:
    """A keeper's answer about this kernel's process, checked. Raises `Garbled`."""
    try:
        kept = msgspec.convert(answer, Kept)
    except msgspec.ValidationError as error:
        raise Garbled(f"kernel {kernel_id}: what is told of it makes no sense: {error}") from None
    if kept.kernel_id != kernel_id:
        raise Garbled(f"asked for kernel {kernel_id}, it tells of another")
    return kept


def check_exit(event: Fields) -> None:
    """Raise `Garbled` for an event ``exited`` without the right fields, or with a strange code."""
    try:
        code = msgspec.convert(event, _Exit).code
    except msgspec.ValidationError as error:
        raise Garbled(f"the end of a process that makes no sense: {error}") from None
    if abs(code) > MAX_CODE:
        raise Garbled(f"exit code {code}")

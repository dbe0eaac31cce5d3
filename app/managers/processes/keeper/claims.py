"""What a keeper tells is looked at before it is believed: whose kernel, and which numbers.

A keeper on another host runs where others may have had their hands on it. What it tells of its own
kernels is theirs. Of another's it can tell nothing, and nothing that it tells breaks this server.
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
"""No log comes near."""

MAX_HANDLE: Final = 2**32 - 1
MAX_TEXT: Final = 256
MAX_CODE: Final = 2**32
"""No exit status comes near: on Windows they are unsigned, of 32 bits."""


class _Exit(msgspec.Struct):
    kernel_id: str
    pid: int
    code: int
    oom: bool = False


def heard_of(answer: Any, kernel_id: str, known: tuple[int, int] = (1, 0)) -> Heard:
    """What a keeper tells of this kernel that it hears; its log was ``known`` when it was asked.

    Raises `Garbled`.
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
    """Raise `Garbled` for a log that cannot be, as it was ``known`` to go so far."""
    # A log never goes back, and begins where it ends at the latest. Numbers that no log comes near
    # would make a gap that no log ever closes.
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
    """What a keeper tells of this kernel's process. Raises `Garbled`."""
    try:
        kept = msgspec.convert(answer, Kept)
    except msgspec.ValidationError as error:
        raise Garbled(f"kernel {kernel_id}: what is told of it makes no sense: {error}") from None
    if kept.kernel_id != kernel_id:
        raise Garbled(f"asked for kernel {kernel_id}, it tells of another")
    return kept


def check_exit(event: Fields) -> None:
    """Raise `Garbled` for the end of a process that cannot be."""
    try:
        code = msgspec.convert(event, _Exit).code
    except msgspec.ValidationError as error:
        raise Garbled(f"the end of a process that makes no sense: {error}") from None
    if abs(code) > MAX_CODE:
        raise Garbled(f"exit code {code}")

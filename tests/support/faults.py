"""The ways in which a collaborator of the server fails, and the orders to fail so.

A *call* is one request to the keeper, by its verb, or one method of a kernel's provisioner. An
order is for a *key*: the id of a kernel, or what a collaborator says it is for kernels whose ids
nobody knows before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

__all__ = ["LATE_SECONDS", "Call", "Collaborator", "Fault", "Orders", "Way"]

LATE_SECONDS = 2.0
"""How late an answer is that comes late: well within every bound of the server's."""


class Way(StrEnum):
    """How a call fails. The last two take the collaborator with them, until it is healed."""

    RAISE = "raise"
    """Nothing is done, and that is said."""
    HANG = "hang"
    """Nothing is done and nothing said; what was asked may be done when everything is healed."""
    LATE = "late"
    """All is done at once, and said `LATE_SECONDS` later."""
    LOSE = "lose"
    """All is done, and the answer never comes."""
    ANSWER_AND_DIE = "answer-and-die"
    """All is done and said, and the collaborator ends."""
    DIE = "die"
    """All is done, and the collaborator ends before it has said so."""

    @property
    def deadly(self) -> bool:
        """Whether the collaborator ends."""
        return self in (Way.ANSWER_AND_DIE, Way.DIE)


@dataclass(frozen=True)
class Call:
    """The ``nth`` call (from 1) of its name since the order was given."""

    name: str
    nth: int = 1

    def __str__(self) -> str:
        return self.name if self.nth == 1 else f"{self.name}[{self.nth}]"


@dataclass
class Fault:
    """An order, and whether the call has come."""

    call: Call
    way: Way
    met: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def meets(self, name: str) -> Way | None:
        """Count a call; how it is to fail, if it is the one."""
        self.seen[name] += 1
        if self.met or name != self.call.name or self.seen[name] != self.call.nth:
            return None
        self.met = True
        return self.way


class Orders:
    """The orders that stand, by key, and what was called for the keys that are recorded."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}
        self._recorded: dict[str, list[str]] = {}

    def order(self, key: str, call: Call, way: Way) -> None:
        self._faults[key] = Fault(call, way)

    def met(self, key: str) -> bool:
        """Whether the call that was to fail has come."""
        return key in self._faults and self._faults[key].met

    def withdraw(self, key: str) -> None:
        self._faults.pop(key, None)

    def record(self, key: str) -> list[str]:
        """The calls for a key since this was asked first; the list grows."""
        return self._recorded.setdefault(key, [])

    def meet(self, name: str, key: str | None) -> tuple[Way | None, str]:
        """Count a call, for every key if it is for none; how it is to fail, and by whose order."""
        for recorded, calls in self._recorded.items():
            if key in (None, recorded):
                calls.append(name)
        for ordered, fault in self._faults.items():
            if key in (None, ordered) and (way := fault.meets(name)) is not None:
                return way, ordered
        return None, ""


class Collaborator(Protocol):
    """What the tables drive: the failing keeper and the failing provisioner."""

    spec: str
    """The kernelspec whose kernels have to do with it."""
    shared: bool
    """Whether all kernels have to do with the same one."""

    @property
    def common(self) -> set[str]:
        """The calls so far that were for no kernel in particular."""

    def order(self, key: str, call: Call, way: Way) -> None:
        """Have one call fail."""

    def met(self, key: str) -> bool:
        """Whether the call that was to fail has come."""

    async def heal(self, key: str) -> None:
        """From now on nothing fails any more, and what hung is done."""

    def record(self, key: str) -> None:
        """Note what is called from now on."""

    def recorded(self, key: str) -> list[str]:
        """What has been called since."""

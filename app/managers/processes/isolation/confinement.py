"""How one kernel is kept apart from those of other owners: what all kinds of isolation share."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from .places import KernelPlace

__all__ = ["Confinement", "Launch", "kernels_exit_code"]

_SIGNALLED: Final = 128
"""bwrap's exit code is this plus the number of the signal that has killed the kernel."""


class Launch(NamedTuple):
    """The process that the keeper is to launch; ``fields`` are further fields of the request."""

    command: list[str]
    env: dict[str, str]
    cwd: str
    fields: dict[str, Any]


class Confinement(ABC):
    """How one kernel's processes are launched. The methods block, but for the pure ones.

    They are called in this order for each launch: `prepare`, `environment`, `hand_over`, `launch`;
    and `remove` when the kernel is gone.
    """

    kind: ClassVar[str]
    """The value of the option ``isolation``."""

    def __init__(self, place: KernelPlace) -> None:
        self.place = place

    @abstractmethod
    def prepare(self) -> None:
        """Make the directories that the kernel needs. Raises `IsolationUnavailable`, `OSError`."""

    @abstractmethod
    def environment(self, env: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
        """The kernel's environment, made from ``env`` and the ``server``'s environment. Pure."""

    @abstractmethod
    def hand_over(self) -> None:
        """Let the kernel, and no other, read its connection file, which was just written."""

    @abstractmethod
    def launch(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str, resources: str
    ) -> Launch:
        """The process to launch for a kernel with this command, environment and directory.

        ``resources`` is the kernelspec's directory; empty if it has none. Raises
        `IsolationUnavailable`.
        """

    def explain(self, error: OSError, command: Sequence[str], env: Mapping[str, str]) -> str:
        """Why the keeper could not launch a command, for people; empty if that is not known."""
        del error, command, env
        return ""

    def remove(self) -> None:
        """Remove the kernel's own directory."""
        shutil.rmtree(self.place.directory, ignore_errors=True)


def kernels_exit_code(kind: str, code: int) -> int:
    """The exit code of a kernel that was isolated in this way (``kind``).

    ``code`` is that of the process which the keeper has launched. Both are negative for a process
    that was killed: minus the number of the signal.
    """
    if kind == "bubblewrap" and _SIGNALLED < code <= _SIGNALLED + 64:
        return _SIGNALLED - code
    return code

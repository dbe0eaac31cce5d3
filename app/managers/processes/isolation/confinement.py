"""One kernel that is kept apart from those of other owners, whichever way."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from .places import KernelPlace

__all__ = ["Confinement", "Launch", "kernels_exit_code"]

_SIGNALLED: Final = 128
"""bwrap exits with so much more than the number of the signal that has killed the kernel."""


class Launch(NamedTuple):
    """What the keeper is asked to launch; ``fields`` are further ones of the request."""

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
        """The kernel's environment in place of ``env``; ``server`` is the server's. Pure."""

    @abstractmethod
    def hand_over(self) -> None:
        """The connection file is written: the kernel, and no other, can read it from now on."""

    @abstractmethod
    def launch(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str, resources: str
    ) -> Launch:
        """What is to be launched for a kernel with this command, environment and directory.

        ``resources`` is its kernelspec's directory; empty if it has none. Raises
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
    """The exit code of a kernel that was isolated in this way, of that of the keeper's process.

    Either is minus the number of a signal.
    """
    if kind == "bubblewrap" and _SIGNALLED < code <= _SIGNALLED + 64:
        return _SIGNALLED - code
    return code

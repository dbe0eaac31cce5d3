"""How a server keeps the kernels of its owners apart: the shell around the rest of this room."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path

from ....isolation_options import id_range
from ....settings import Settings
from ...errors import IsolationUnavailable
from .accounts import Accounts
from .checks import new_sandbox
from .confinement import Confinement
from .names import directory_name
from .places import KernelPlace, kernels_dir
from .sandbox import Sandboxed, make_own_home
from .user import AsUser, make_home

__all__ = ["Isolation", "new_isolation"]


class Isolation:
    """No isolation: all kernels are the service's user's, and work below ``root_dir``."""

    kind = "none"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def own(self) -> list[Path]:
        """Directories that were made for this run of the server, and go with it."""
        return []

    async def root(self, owner: str) -> Path:
        """The directory that the paths of an owner's kernels are relative to, which is there.

        Raises `IsolationUnavailable`.
        """
        del owner
        return self._settings.root_dir

    def confine(self, owner: str, kernel_id: str) -> Confinement | None:
        """How a kernel of this owner is kept apart; None if it is not."""
        del owner, kernel_id
        return None

    def remove_leftovers(self, known: Collection[str], oldest: float = math.inf) -> None:
        """Remove the directories of kernels that are not among these. Blocks.

        Those that have changed since ``oldest``, in seconds since the epoch, are left alone.
        """

    def close(self) -> None:
        """Remove what is not for the next server. Blocks."""


class _WithHomes(Isolation):
    """Each owner has a home. ``run`` has the files of this run of the server.

    ``mode`` is that of the directories above those of kernels.
    """

    def __init__(self, settings: Settings, run: Path, mode: int) -> None:
        super().__init__(settings)
        assert settings.isolation_dir is not None, "the settings have checked it"
        self._homes = settings.isolation_dir
        self._kernels = kernels_dir(self._homes, run)
        for made in (self._kernels.parent, self._kernels):
            made.mkdir(mode=mode, exist_ok=True)
            made.chmod(mode)

    @property
    def own(self) -> list[Path]:
        """As `Isolation.own`."""
        return [] if self._settings.keeps else [self._kernels]

    async def root(self, owner: str) -> Path:
        """As `Isolation.root`: the owner's home."""
        # Starts of one owner may be in there at the same time: each step bears that another is
        # faster.
        return await asyncio.to_thread(self._root, owner)

    def _root(self, owner: str) -> Path:
        try:
            # An account's home may lie behind a link (/home is one on some systems). Paths are
            # resolved before they are compared with this one.
            return self._home(owner).resolve()
        except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is the second
            raise IsolationUnavailable(f"the owner's home cannot be made: {error}") from None

    @abstractmethod
    def _home(self, owner: str) -> Path:
        """The home of an owner, made if need be. Raises `IsolationUnavailable` and `OSError`."""

    def remove_leftovers(self, known: Collection[str], oldest: float = math.inf) -> None:
        """As `Isolation.remove_leftovers`."""
        wanted = {KernelPlace(self._kernels, kernel_id).directory for kernel_id in known}
        for directory in {*self._kernels.iterdir()} - wanted:
            with contextlib.suppress(FileNotFoundError):
                # Other replicas make directories meanwhile, for kernels of which nothing is known
                # here yet.
                if directory.stat().st_mtime <= oldest:
                    shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        """As `Isolation.close`."""
        for directory in self.own:
            shutil.rmtree(directory, ignore_errors=True)


class UserIsolation(_WithHomes):
    """A user of the system for each owner."""

    kind = "user"

    def __init__(self, settings: Settings, run: Path) -> None:
        super().__init__(settings, run, 0o711)
        ids = id_range(settings.isolation_uids) if settings.isolation_uids else range(0)
        self._accounts = Accounts(self._homes, ids, by_name=settings.isolation_accounts)

    def _home(self, owner: str) -> Path:
        account = self._accounts.find(owner)
        make_home(account)
        return account.home

    def confine(self, owner: str, kernel_id: str) -> Confinement:
        """As `Isolation.confine`."""
        place = KernelPlace(self._kernels, kernel_id)
        return AsUser(place, lambda: self._accounts.find(owner))


class SandboxIsolation(_WithHomes):
    """A sandbox for each kernel. Raises `CannotIsolate` if there is no bwrap."""

    kind = "bubblewrap"

    def __init__(self, settings: Settings, run: Path) -> None:
        super().__init__(settings, run, 0o700)
        self._sandbox = new_sandbox(settings)

    def _home(self, owner: str) -> Path:
        home = self._homes / directory_name(owner)
        make_own_home(home)
        return home

    def confine(self, owner: str, kernel_id: str) -> Confinement:
        """As `Isolation.confine`."""
        place = KernelPlace(self._kernels, kernel_id)
        return Sandboxed(place, self._sandbox, self._homes / directory_name(owner))


def new_isolation(settings: Settings, run: Path) -> Isolation:
    """The isolation that the options ask for; ``run`` has the files of this run of the server.

    Raises `OSError` and `CannotIsolate`.
    """
    if settings.isolation == "user":
        return UserIsolation(settings, run)
    if settings.isolation == "bubblewrap":
        return SandboxIsolation(settings, run)
    return Isolation(settings)

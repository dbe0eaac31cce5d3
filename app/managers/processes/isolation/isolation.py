"""How a server keeps the kernels of its owners apart; the other modules here do the parts."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sys
from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ....isolation_options import id_range
from ....settings import Settings
from ...errors import IsolationUnavailable
from ...owners.principal import Principal
from .accounts import Accounts
from .checks import new_sandbox
from .confinement import Confinement
from .file_rights import FileRights, OfUser, Within
from .names import directory_name
from .places import KernelPlace, kernels_dir
from .sandbox import Sandboxed, make_own_home
from .user import AsUser, make_home

__all__ = ["Isolation", "OwnersFiles", "new_isolation"]


class OwnersFiles(NamedTuple):
    """Where an owner's files are, and the rights by which the service reads and writes them."""

    root: Path
    rights: FileRights


class Isolation:
    """No isolation: all kernels are the service's user's, and work below ``root_dir``.

    With `files_by_owner` each owner has a directory there.
    """

    kind = "none"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def own(self) -> list[Path]:
        """Directories that were made for this run of the server, and are removed at its end."""
        return []

    async def root(self, owner: str) -> Path:
        """The directory to which the paths of an owner's kernels are relative; made if need be.

        Raises `IsolationUnavailable`.
        """
        if not self._settings.files_by_owner:
            return self._settings.root_dir
        return await asyncio.to_thread(self._root, owner)

    async def files_root(self, principal: Principal) -> Path | None:
        """The directory of the files that a principal reads if it names no owner; None for none."""
        if not self._settings.files_by_owner:
            return self._settings.root_dir if principal.scopes.allow("read", "contents") else None
        if not principal.scopes.allow_own("read", "contents"):
            return None
        with contextlib.suppress(IsolationUnavailable):  # where there is no directory, are no files
            return await self.root(principal.owner)
        return None

    def files(self, owner: str) -> OwnersFiles:
        """The directory of an owner's files, made if need be, and the rights to them. Blocks.

        Call it only with the option `files_by_owner`. Raises `IsolationUnavailable`.
        """
        return OwnersFiles(self._root(owner), FileRights())

    def has_files(self, owner: str) -> bool:
        """Whether the directory of an owner's files has been made already. Blocks."""
        return self._place(owner).is_dir()

    def _root(self, owner: str) -> Path:
        try:
            # An account's home may lie behind a link (/home is one on some systems). Paths are
            # resolved before they are compared with this one.
            return self._home(owner).resolve()
        except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is the second
            raise IsolationUnavailable(f"the owner's home cannot be made: {error}") from None

    def _place(self, owner: str) -> Path:
        """The path of an owner's home, if the service makes it."""
        return self._settings.root_dir / directory_name(owner)

    def _home(self, owner: str) -> Path:
        """The home of an owner, made if need be. Raises `IsolationUnavailable` and `OSError`."""
        home = self._place(owner)
        make_own_home(home)
        if home.stat().st_mode & 0o077:
            # The directory may be older than the option, and have files of others.
            raise IsolationUnavailable(
                f"{home} is open to other users: if it is this owner's alone, chmod 700 {home}"
            )
        return home

    def confine(self, owner: str, kernel_id: str) -> Confinement | None:
        """The confinement of a kernel of this owner; None without isolation."""
        del owner, kernel_id
        return None

    def remove_leftovers(self, known: Collection[str], oldest: float = math.inf) -> None:
        """Remove the directories of kernels whose ids are not ``known``. Blocks.

        Directories that have changed since ``oldest``, in seconds since the epoch, stay.
        """

    def close(self) -> None:
        """Remove the directories that are not for the next server (`own`). Blocks."""


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
        # Several kernels of one owner may be started at the same time: each step of `_root` works
        # if another thread has done it just before.
        return await asyncio.to_thread(self._root, owner)

    def _place(self, owner: str) -> Path:
        return self._homes / directory_name(owner)

    @abstractmethod
    def _home(self, owner: str) -> Path:
        """As `Isolation._home`."""

    def remove_leftovers(self, known: Collection[str], oldest: float = math.inf) -> None:
        """As `Isolation.remove_leftovers`."""
        wanted = {KernelPlace(self._kernels, kernel_id).directory for kernel_id in known}
        for directory in {*self._kernels.iterdir()} - wanted:
            with contextlib.suppress(FileNotFoundError):
                # Other replicas may make directories meanwhile, for kernels that are not known here
                # yet.
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

    def files(self, owner: str) -> OwnersFiles:
        """As `Isolation.files`: those of the owner's user."""
        account = self._accounts.find(owner)
        return OwnersFiles(self._root(owner), OfUser(account.uid, account.gid))

    def has_files(self, owner: str) -> bool:
        """As `Isolation.has_files`."""
        return super().has_files(owner) or self._accounts.is_of_system(owner)

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
        # The thread that works with an owner's files has to read Python's modules and packages,
        # which are imported when they are first needed. A directory above owners' files is left
        # out.
        hidden = [self._homes, settings.state_dir, settings.root_dir]
        self._modules = tuple(
            Path(path)
            for path in dict.fromkeys(sys.path)
            if os.path.isabs(path)
            and os.path.isdir(path)
            and not os.path.islink(path)
            and not any(one.is_relative_to(Path(path).resolve()) for one in hidden)
        )

    def _home(self, owner: str) -> Path:
        home = self._place(owner)
        make_own_home(home)
        return home

    def files(self, owner: str) -> OwnersFiles:
        """As `Isolation.files`: what lies in the owner's home."""
        root = self._root(owner)
        return OwnersFiles(root, Within((root,), self._modules))

    def confine(self, owner: str, kernel_id: str) -> Confinement:
        """As `Isolation.confine`."""
        place = KernelPlace(self._kernels, kernel_id)
        return Sandboxed(place, self._sandbox, self._place(owner))


def new_isolation(settings: Settings, run: Path) -> Isolation:
    """The isolation that the options ask for; ``run`` has the files of this run of the server.

    Raises `OSError` and `CannotIsolate`.
    """
    if settings.isolation == "user":
        return UserIsolation(settings, run)
    if settings.isolation == "bubblewrap":
        return SandboxIsolation(settings, run)
    return Isolation(settings)

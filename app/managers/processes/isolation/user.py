"""A kernel that runs as a user of the system, which its owner has alone."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ...errors import IsolationUnavailable
from .accounts import Account
from .confinement import Confinement, Launch
from .environment import own_environment
from .places import KernelPlace

__all__ = ["AsUser", "barrier", "make_home"]

_LINKS: Final = 40  # that are followed on one path, as Linux does


class AsUser(Confinement):
    """A kernel whose process runs as its owner's user.

    ``find`` returns the owner's account; it may block, and raises `IsolationUnavailable`.
    """

    kind = "user"

    def __init__(self, place: KernelPlace, find: Callable[[], Account]) -> None:
        super().__init__(place)
        self._find = find
        self._account: Account | None = None

    @property
    def account(self) -> Account:
        """The account as it was at the last `prepare`."""
        assert self._account is not None, "prepare() comes first"
        return self._account

    def prepare(self) -> None:
        """As `Confinement.prepare`."""
        # Looked up for each launch: the system's account of that name may be another by now.
        account = self._account = self._find()
        make_home(account)
        # No other user can write where these directories are made, or put links in their place.
        for directory, mode in ((self.place.directory, 0o711), (self.place.sockets, 0o700)):
            directory.mkdir(mode=mode, exist_ok=True)
            directory.chmod(mode)  # whatever the umask is
        os.chown(self.place.sockets, account.uid, account.gid)

    def environment(self, env: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
        """As `Confinement.environment`."""
        return own_environment(env, server, home=self.account.home, name=self.account.name)

    def hand_over(self) -> None:
        """As `Confinement.hand_over`."""
        self.place.connection_file.chmod(0o600)  # kernels add to what is in there
        # After `chmod`: there is no moment in which the file is the user's and others can read it.
        # The directory is the service's, so no other user has put a link in the file's place.
        os.chown(self.place.connection_file, self.account.uid, self.account.gid)

    def launch(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str, resources: str
    ) -> Launch:
        """As `Confinement.launch`."""
        del resources  # the system decides which of them the user can read
        account = self.account
        # As `Isolation.root` has it: the keeper looks for ``cwd`` below this, word for word.
        home = str(account.home.resolve())
        user = {"uid": account.uid, "gid": account.gid, "home": home}
        return Launch([*command], dict(env), cwd, {"as_user": user})

    def explain(self, error: OSError, command: Sequence[str], env: Mapping[str, str]) -> str:
        """As `Confinement.explain`."""
        if error.errno != errno.EACCES:
            return ""
        program = shutil.which(command[0], path=env.get("PATH")) or command[0]
        closed = barrier(Path(program), self.account.uid, self.account.gid)
        if closed is None:
            return ""
        return (
            f"the user {self.account.uid} may not execute {program}, as {closed} is closed to it: "
            "install what the kernelspec names where everybody can read it"
        )


def make_home(account: Account) -> None:
    """Make an account's home (0700), if the service is to make it and it is not there.

    Raises `IsolationUnavailable` if the home is not the account's, and `OSError`.
    """
    home = account.home
    try:
        status = os.lstat(home)
    except FileNotFoundError:
        if not account.own:
            raise IsolationUnavailable(f"the account's home {home} is not there") from None
        _make(home, account)
        # Looked at also when it was just made: another start may have been faster, with what was
        # there.
        status = os.lstat(home)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != account.uid:
        raise IsolationUnavailable(
            f"{home} is no directory of the user {account.uid}: chown -R {account.uid} {home}"
        )


def _make(home: Path, account: Account) -> None:
    """Make a home under another name first: no half-made one is ever there under its own."""
    made = tempfile.mkdtemp(prefix=".new-", dir=home.parent)
    try:
        # In this order: whoever finds a home finds it with its owner. A directory takes the place
        # of an empty one only, so no files are lost to a race.
        os.chown(made, account.uid, account.gid)
        os.rename(made, home)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(made)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another start has made it
            raise


def barrier(path: Path, uid: int, gid: int) -> Path | None:
    """The first directory or file on the way to ``path`` that a user may not pass or execute.

    Links are followed. None if there is none, by the permission bits alone, or it cannot be told.
    """
    here, ahead, links = Path("/"), [*reversed(path.parts[1:])], 0
    try:
        while ahead:
            # Only to explain a launch that was refused; the system alone decides, by more than
            # these bits.
            if not _may_execute(here, uid, gid):
                return here
            part = ahead.pop()
            there = here.parent if part == ".." else here / part
            if there.is_symlink():
                links += 1
                if links > _LINKS:
                    return None
                target = Path(os.readlink(there))
                ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                here = Path("/") if target.is_absolute() else here
            else:
                here = there
        return None if _may_execute(here, uid, gid) else here
    except OSError:
        return None


def _may_execute(path: Path, uid: int, gid: int) -> bool:
    status = path.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)

"""A kernel in a sandbox of bubblewrap's: namespaces of its own, with few files in them.

bwrap runs outside of the sandbox and waits for it. Its own environment is empty, and its options
come to it by a descriptor. So a variable of a kernel by which a loader runs code (``LD_PRELOAD``)
has an effect inside only, and no variable shows in a command line.

bwrap, the sandbox's first process and the kernel are one process group, and each signal goes to all
three. bwrap ignores the signals that interrupt and terminate kernels, and the kernel has them at
their defaults again. The first process gets no signal but SIGKILL [pid_namespaces(7)], which ends
all processes in the sandbox. bwrap's ``--die-with-parent`` is not used, as it would end the kernel
with the keeper. Nor is ``--new-session``, which would keep signals from the kernel; the kernel has
no terminal anyway, as the keeper makes a session for each.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ....keeper.launching import ARGUMENTS
from ...errors import IsolationUnavailable
from .confinement import Confinement, Launch
from .environment import own_environment
from .places import KernelPlace

__all__ = ["SYSTEM", "Sandbox", "Sandboxed", "make_own_home"]

SYSTEM: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt"),
    "/sys/devices/system/cpu",  # by which libraries find how many threads are of use
)
"""The paths that every kernel may read, as far as they exist."""

_SIGNALS: Final = ("INT", "TERM")
"""The signals by which kernels are interrupted and terminated."""

_NAMESPACES: Final = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts")


class Sandbox(NamedTuple):
    """The part of a sandbox that is the same for all kernels of a server.

    ``bwrap`` and ``env`` are the paths of programs. ``readable`` has the files and directories that
    kernels may read, as far as they exist, except those below ``hidden``. With ``network`` kernels
    have the machine's network.
    """

    bwrap: str
    env: str
    readable: tuple[Path, ...]
    hidden: tuple[Path, ...]
    network: bool

    def arguments(
        self, home: Path, cwd: str, env: Mapping[str, str], place: KernelPlace | None
    ) -> list[str]:
        """The options of bwrap for one kernel, or for a trial without one (``place`` is None).

        Reads the disk, to see which hidden paths exist. Of two options for one path the later
        counts.
        """
        options = [*_NAMESPACES, "--unshare-cgroup-try", "--cap-drop", "ALL"]
        options += [] if self.network else ["--unshare-net"]
        # The shortest paths first: a later bind of a directory would cover binds below it.
        for path in sorted(self.readable, key=lambda path: len(path.parts)):
            options += ["--ro-bind-try", str(path), str(path)]
        # After the readable paths, so that these options count. A file is hidden by an empty one.
        for path in self._seen():
            if path.is_dir():
                options += ["--tmpfs", str(path)]
            else:
                options += ["--ro-bind", os.devnull, str(path)]
        options += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]
        options += ["--bind", str(home), str(home)]
        if place is not None:
            for path in (place.connection_file, place.sockets):  # kernels add to the file
                options += ["--bind", str(path), str(path)]
        options += ["--remount-ro", "/", "--chdir", cwd]
        for name, value in env.items():
            options += ["--setenv", name, value]
        return options

    def _seen(self) -> list[Path]:
        """The paths in the sandbox at which hidden files would be seen.

        A readable directory may be a link: a hidden path is seen below the link, too.
        """
        seen = set()
        for readable in self.readable:
            for real in {readable, readable.resolve()}:
                for path in {one for hidden in self.hidden for one in (hidden, hidden.resolve())}:
                    if path.is_relative_to(real) and path.exists():
                        seen.add(readable / path.relative_to(real))
        return sorted(seen)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs another in a sandbox; the keeper replaces the word `ARGUMENTS`."""
        return self.with_options(["--args", ARGUMENTS], command)

    def with_options(self, options: Sequence[str], command: Sequence[str]) -> list[str]:
        """As `command`, with these options of bwrap in the command line."""
        ignoring = [f"--ignore-signal={name}" for name in _SIGNALS]
        heeding = [f"--default-signal={name}" for name in _SIGNALS]
        inside = [self.env, *heeding, *command]
        return [self.env, *ignoring, self.bwrap, *options, "--", *inside]

    def shows(self, path: str) -> bool:
        """Whether a file, and what it is a link to, is among those that a kernel can read."""
        places = (Path(os.path.abspath(path)), Path(path).resolve())
        return all(self._shows(place) for place in places)

    def _shows(self, path: Path) -> bool:
        readable = (*self.readable, *(one.resolve() for one in self.readable))
        return _is_below(path, readable) and not _is_below(path, self.hidden)


class Sandboxed(Confinement):
    """A kernel in a sandbox, whose owner has ``home``."""

    kind = "bubblewrap"

    def __init__(self, place: KernelPlace, sandbox: Sandbox, home: Path) -> None:
        super().__init__(place)
        self._sandbox = sandbox
        self._home = home

    def prepare(self) -> None:
        """As `Confinement.prepare`."""
        make_own_home(self._home)
        for directory in (self.place.directory, self.place.sockets):
            directory.mkdir(mode=0o700, exist_ok=True)

    def environment(self, env: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
        """As `Confinement.environment`."""
        return own_environment(env, server, home=self._home, name=self._home.name)

    def hand_over(self) -> None:
        """As `Confinement.hand_over`: the file is in no other kernel's sandbox."""

    def launch(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str, resources: str
    ) -> Launch:
        """As `Confinement.launch`."""
        sandbox = self._sandbox
        if resources:
            sandbox = sandbox._replace(readable=(*sandbox.readable, Path(resources)))
        # Looked for here, where the sandbox has the same paths. bwrap itself would fail inside,
        # where the error is the kernel's output alone.
        program = shutil.which(command[0], path=env.get("PATH")) or command[0]
        if os.path.isabs(program) and not sandbox.shows(program):
            raise IsolationUnavailable(
                f"{program} is not among the files that kernels can read: isolation_paths names "
                "further ones"
            )
        arguments = sandbox.arguments(self._home, cwd, env, self.place)
        return Launch(sandbox.command(command), {}, "/", {"arguments": arguments})


def make_own_home(home: Path) -> None:
    """Make a home (0700) of the service's user, if it is not there.

    Raises `IsolationUnavailable` if it is another's, and `OSError`.
    """
    home.mkdir(mode=0o700, exist_ok=True)
    # Not followed if it is a link: it would lead a kernel's sandbox to other files.
    status = os.lstat(home)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise IsolationUnavailable(f"{home} is no directory of the service's user")


def _is_below(path: Path, directories: Iterable[Path]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)

"""Checks, before any kernel is started, whether this machine has what the isolation needs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

from ....isolation_options import id_range
from ....settings import Settings
from .file_rights import has_landlock, has_user_rights
from .places import MAX_DIRECTORY
from .sandbox import SYSTEM, Sandbox

__all__ = [
    "CannotIsolate",
    "check_isolation",
    "missing_capabilities",
    "new_sandbox",
    "not_mapped",
]

TRY_SECONDS: Final = 10.0
"""How long a sandbox in which `true` is run may take."""

_CAPABILITIES: Final = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7}
"""The capabilities that root needs to run kernels as other users, and their numbers
[capabilities(7)]."""


class CannotIsolate(Exception):
    """The isolation that an option asks for is not possible here; the text says why."""


def check_isolation(settings: Settings) -> None:
    """Raise `CannotIsolate` if kernels could not be isolated as the options want it.

    The directory of the homes is made if it is not there.
    """
    _check_files(settings)
    if settings.isolation == "none":
        return
    directory = settings.isolation_dir
    assert directory is not None, "the settings have checked it"
    if not sys.platform.startswith("linux"):
        raise CannotIsolate("--isolation: this takes Linux")
    if len(os.fsencode(directory)) > MAX_DIRECTORY:
        raise CannotIsolate(
            f"--isolation-dir: its path has more than {MAX_DIRECTORY} bytes, so that no socket "
            "could have a name in it"
        )
    if settings.isolation == "user":
        _check_root(settings)
        _check_directory(directory, open_to_others=True)
    else:
        sandbox = new_sandbox(settings)
        _check_directory(directory, open_to_others=False)
        _try(sandbox, directory)


def _check_files(settings: Settings) -> None:
    """Raise `CannotIsolate` if the service could not serve each owner the owner's own files."""
    if not settings.files_by_owner:
        return
    if settings.isolation == "none" and not os.access(settings.root_dir, os.W_OK | os.X_OK):
        raise CannotIsolate(
            f"--files-by-owner: the service may not make the owners' directories in "
            f"{settings.root_dir}"
        )
    if not settings.allow_contents:
        return
    if settings.isolation == "user" and not has_user_rights():
        raise CannotIsolate(
            "--files-by-owner: on this machine no thread can have the rights of another user"
        )
    if settings.isolation == "bubblewrap" and not has_landlock():
        raise CannotIsolate(
            "--files-by-owner: with isolation=bubblewrap this takes Landlock (Linux 5.19), which "
            "is not to be had here"
        )


def _check_root(settings: Settings) -> None:
    if os.geteuid() != 0:
        raise CannotIsolate("--isolation: user takes root, to run kernels as other users")
    status = Path("/proc/self/status").read_text()
    if missing := missing_capabilities(status):
        raise CannotIsolate(
            f"--isolation: user takes the capabilities {', '.join(missing)}, which this process "
            "has not"
        )
    ids = id_range(settings.isolation_uids) if settings.isolation_uids else range(0)
    for file in ("uid_map", "gid_map"):
        if not_mapped(Path("/proc/self", file).read_text(), ids):
            raise CannotIsolate(
                f"--isolation-uids: not all of these ids are there in this user namespace: see "
                f"/proc/self/{file}"
            )


def new_sandbox(settings: Settings) -> Sandbox:
    """The sandbox of all kernels, as the options want it. Raises `CannotIsolate`."""
    if os.geteuid() == 0:
        raise CannotIsolate(
            "--isolation: bubblewrap is not for root, who may read what others hide: start the "
            "service as another user"
        )
    programs = [shutil.which(name) for name in ("bwrap", "env")]
    bwrap, env = programs
    if bwrap is None or env is None:
        raise CannotIsolate("--isolation: there is no bwrap: install the package bubblewrap")
    readable = [*map(Path, SYSTEM), *map(Path, {sys.prefix, sys.base_prefix})]
    readable += settings.isolation_paths
    if settings.isolation_network:  # which may be a link to a file elsewhere
        readable.append(Path("/etc/resolv.conf").resolve())
    hidden = [settings.state_dir, *settings.config_files, Path(settings.database_filepath)]
    hidden += [] if settings.audit_log is None else [settings.audit_log]
    assert settings.isolation_dir is not None
    return Sandbox(
        bwrap,
        env,
        (*map(Path.absolute, readable),),
        (settings.isolation_dir, *hidden),
        settings.isolation_network,
    )


def _try(sandbox: Sandbox, home: Path) -> None:
    """Run a program in a sandbox, so that an error is known before the first kernel is started."""
    command = sandbox.with_options(sandbox.arguments(home, str(home), {}, None), ["true"])
    try:
        done = subprocess.run(
            command, env={}, capture_output=True, timeout=TRY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotIsolate(f"--isolation: bwrap does not work here: {error}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise CannotIsolate(f"--isolation: bwrap does not work here: {said[-1]}")


def missing_capabilities(status: str) -> list[str]:
    """The names of needed capabilities that are not effective, by the text of /proc/PID/status."""
    words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    effective = int(words.get("CapEff", "0"), 16)
    return [f"CAP_{name}" for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def not_mapped(map_text: str, ids: range) -> bool:
    """Whether any of these ids does not exist in a user namespace, by the text of its uid_map.

    [user_namespaces(7)]
    """
    wanted = len(ids)
    for line in map_text.splitlines():
        first, _, count = map(int, line.split())
        overlap = range(max(first, ids.start), min(first + count, ids.stop))
        wanted -= len(overlap)
    return wanted > 0


def _check_directory(directory: Path, *, open_to_others: bool) -> None:
    """Make the directory, and check that no other user can put files into it, or in its place."""
    mode = 0o711 if open_to_others else 0o700
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        status = directory.stat()
        # A user who can rename a directory above could put another in its place, with homes and
        # sockets. The sticky bit, as in /tmp, prevents that [rename(2)].
        above = [(path, path.stat()) for path in directory.parents]
    except OSError as error:
        raise CannotIsolate(f"--isolation-dir: {error.strerror}: {directory}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise CannotIsolate(f"--isolation-dir: {directory} is no directory of the service's user")
    if status.st_mode & 0o077 & ~mode or (open_to_others and not status.st_mode & 0o001):
        raise CannotIsolate(f"--isolation-dir: it takes another mode: chmod {mode:04o} {directory}")
    for path, found in above:
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise CannotIsolate(f"--isolation-dir: others can change {path}, above it")
        if open_to_others and not found.st_mode & 0o001:
            raise CannotIsolate(f"--isolation-dir: users cannot get there: chmod o+x {path}")

"""A directory that a server has to itself, and the search for what it left behind in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.processes import HAS_PROC, mentions

# Variables of our own environment that a server may need to run at all, or to be measured.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START", "TZ")

KERNEL_CONFIG = "get_config().IPCompleter.use_jedi = False\n"
"""Of Python kernels: in a new home Jedi works for four seconds before it completes a first word."""

PLATFORMS = Path(__file__).with_name("platforms")
"""Each directory has a ``sitecustomize`` that takes away what a platform has not."""


class Home:
    """Directories and environment of one server, apart from the user's and from other tests'.

    It lies in the system's temporary directory, not in pytest's, whose paths are longer than the
    name of a socket may be.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kk-")).resolve()
        self.root_dir = self._directory("root")
        self.state_dir = self._directory("state")
        self.jupyter_path = self._directory("jupyter")
        self.home_dir = self._directory("home")
        self._temporary = self._directory("tmp")
        profile = self.home_dir / "ipython" / "profile_default"
        profile.mkdir(parents=True)
        (profile / "ipython_kernel_config.py").write_text(KERNEL_CONFIG)
        self._others = _running()

    def _directory(self, name: str) -> Path:
        directory = self.path / name
        directory.mkdir(mode=0o700)
        return directory

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a server: nothing of the user's, all directories in here."""
        return {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            **platform_environment(),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            # Kernels end with their server, but where a test says otherwise.
            "KERNELKEEP_ON_SHUTDOWN": "stop",
            "HOME": str(self.home_dir),
            "TMPDIR": str(self._temporary),
            "XDG_RUNTIME_DIR": str(self._temporary),
            "XDG_STATE_HOME": str(self.home_dir / "state"),
            "XDG_DATA_HOME": str(self.home_dir / "data"),
            "IPYTHONDIR": str(self.home_dir / "ipython"),
            "JUPYTER_PATH": str(self.jupyter_path),
            "JUPYTER_CONFIG_DIR": str(self.home_dir / "jupyter-config"),
            "JUPYTER_DATA_DIR": str(self.home_dir / "jupyter-data"),
            "JUPYTER_RUNTIME_DIR": str(self.home_dir / "jupyter-runtime"),
            **(extra or {}),
        }

    def processes(self) -> list[psutil.Process]:
        """Every process that a server of this home started, orphans included.

        A process belongs here if its environment, command line or working directory names a
        directory of this home; its parent says nothing once that is gone. Those that were there
        before the home are not looked at: they are nearly all, and each look is work.
        """
        found = []
        for pid, _ in _running() - self._others:
            if mentions(pid, str(self.path)):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        return found

    @property
    def run_dir(self) -> Path:
        """Where the files are of the one server that runs, with which its kernels end."""
        (run_dir,) = (self.state_dir / "run").iterdir()
        return run_dir

    def leftovers(self) -> list[Path]:
        """Sockets and connection files, wherever in this home, but for a living keeper's."""
        found = [path for path in self._files() if _is_socket(path) or _is_connection_file(path)]
        if found:
            living = self._keepers_sockets()
            found = [path for path in found if path not in living]
        return found

    def _keepers_sockets(self) -> set[Path]:
        sockets: set[Path] = set()
        for process in self.processes():
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if any(word.endswith(".keeper") for word in command):
                sockets.update(Path(command[-1]).glob("keeper*/socket"))
        return sockets

    def _files(self) -> Iterator[Path]:
        for directory, _, names in os.walk(self.path):
            for name in names:
                yield Path(directory, name)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _running() -> set[tuple[int, float]]:
    """Every process: its number, which is another's when it has ended, and what no other has.

    With Linux that is the inode of its directory, which one look at all of them tells. Elsewhere it
    is when the process was started, without a command for each process, as `ps` would be.
    """
    if HAS_PROC:
        with os.scandir("/proc") as entries:
            return {(int(one.name), one.inode()) for one in entries if one.name.isdecimal()}
    found: set[tuple[int, float]] = set()
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess):
            found.add((pid, psutil.Process(pid).create_time()))
    return found


def platform_environment() -> dict[str, str]:
    """What makes an interpreter that of another platform, if this one is (`test_platforms`)."""
    path = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": path} if path.startswith(str(PLATFORMS)) else {}


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_connection_file(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "shell_port" in content


def require_ipykernel() -> None:
    """Fails with the command that installs what the ``python3`` kernel of this interpreter needs.

    Raises:
        AssertionError: ipykernel is not installed.
    """
    try:
        import ipykernel  # noqa: F401
    except ImportError:
        raise AssertionError(
            f"the python3 kernel is missing: {sys.executable} -m pip install ipykernel"
        ) from None

"""Other people's servers, which tests start and end."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import httpx

from tests.support.processes import eventually_sync

__all__ = ["Program"]

ANSWER_SECONDS = 5


class Program:
    """A program that listens at ports of this machine; a context manager. All methods block.

    It runs in ``directory``, and what it puts out goes to the file ``log``.
    """

    start_timeout: ClassVar[float] = 120  # seconds
    stop_timeout: ClassVar[float] = 10

    def __init__(self, directory: Path, log: Path) -> None:
        self._directory = directory
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """What starts it; here its files can be written."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """All variables that it has."""
        raise NotImplementedError

    def urls(self) -> Sequence[str]:
        """What answers with success when it is up; nothing while that is not known."""
        raise NotImplementedError

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def __enter__(self) -> Self:
        command = self.command()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            is_up = eventually_sync(self._is_up, self.start_timeout, 0.1)
            assert is_up, f"{command} does not answer\n{self.output()}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(self.stop_timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(self.stop_timeout)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"{self.process.args!r} ended\n{self.output()}"
        urls = self.urls()
        try:
            return bool(urls) and all(
                httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False, verify=False).is_success
                for url in urls
            )
        except httpx.TransportError:
            return False

    def output(self) -> str:
        """All that it has written to the terminal."""
        return self._log.read_text(errors="replace")

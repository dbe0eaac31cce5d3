"""The command, run again and again by a process that has imported it, and forks for each run.

To import the service costs a second of work, and to be told of a wrong option next to none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from select import select
from typing import Any, NoReturn, Self

from tests.support.home import Home
from tests.support.server import REPOSITORY

TIMEOUT = 60  # seconds


class Commands:
    """A context manager, whose `run` is ``python -m app`` in a process of its own.

    What is read when the service is imported (the home directory) is the same for all runs.
    """

    def __enter__(self) -> Self:
        self._home = Home()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.commands"],
            cwd=REPOSITORY,
            env=self._home.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._home.remove()

    def run(
        self, *arguments: str, home: Home, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """For what ends by itself: bad options. The state directory is that of ``home``.

        Raises:
            AssertionError: it did not end within `TIMEOUT` seconds.
        """
        environment = {"KERNELKEEP_STATE_DIR": str(home.state_dir), **home.environment(env)}
        asked = json.dumps({"arguments": arguments, "environment": environment})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(asked.encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select([self._process.stdout], [], [], TIMEOUT)
        assert ready, f"did not end within {TIMEOUT} s: {arguments}"
        done = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, done["code"], done["stdout"], done["stderr"])


def main() -> None:
    """Answer each line of stdin with a line on stdout."""
    import app.serving  # noqa: F401 - what takes a second

    for line in sys.stdin:
        answer = json.dumps(_run(json.loads(line)))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        pid = os.fork()
        if pid == 0:
            _become(asked, stdout.fileno(), stderr.fileno())
        _, status = os.waitpid(pid, 0)
        said = {}
        for name, file in (("stdout", stdout), ("stderr", stderr)):
            file.seek(0)
            said[name] = file.read().decode()
    return {"code": os.waitstatus_to_exitcode(status), **said}


def _become(asked: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    """In the child: be ``python -m app`` with these arguments and this environment."""
    from app.cli import main as command

    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.environ.clear()
        os.environ.update(asked["environment"])
        command(asked["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

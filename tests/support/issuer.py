"""A certified OpenID Connect provider (npm's oidc-provider), run by Node.js."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Queue
from typing import Any, Final, Self

import httpx

from tests.support.node import NODE, environment

__all__ = ["Issuer"]

START_TIMEOUT = 60  # seconds

_PROGRAM: Final = Path(__file__).parents[1] / "identity_providers" / "node" / "issuer.mjs"


class Issuer:
    """A context manager; all methods block.

    ``users`` has for each name the scopes that its tokens may have. ``packages`` is the directory
    with the provider (`tests.support.node_packages`).
    """

    def __init__(self, packages: Path, users: Mapping[str, Iterable[str]]) -> None:
        self._packages = packages
        self._users = {
            name: {"secret": secrets.token_hex(16), "scopes": [*scopes], "groups": [f"of-{name}"]}
            for name, scopes in users.items()
        }
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str] = Queue()
        self.url = ""

    def __enter__(self) -> Self:
        # Node.js looks for packages beside the program, whose text is given to it there.
        program = _PROGRAM.read_text()
        self._process = subprocess.Popen(
            [NODE, "--input-type=module", "--eval", program, json.dumps(self._users)],
            cwd=self._packages,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.show("first")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("port "):
                self._lines.put(line)
        self._lines.put("")

    def show(self, *keys: str) -> None:
        """From now on it shows the keys of these names, and signs with the first."""
        self._tell({"keys": keys})

    def admit(self, callback: str) -> None:
        """From now on people can log in by its client ``page``, which sends them back there."""
        self._tell({"keys": ["first"], "callback": callback})

    def _tell(self, configuration: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(configuration) + "\n")
        self._process.stdin.flush()
        line = self._lines.get(timeout=START_TIMEOUT)
        assert line, f"the issuer ended with {self._process.wait(5)}"
        self.url = f"http://127.0.0.1:{line.split()[1]}"

    def new_token(self, user: str, *scopes: str, seconds: int = 600) -> str:
        """An access token of a user, good for so many seconds."""
        answer = httpx.post(
            f"{self.url}/token",
            auth=(user, str(self._users[user]["secret"])),
            headers={"X-Seconds": str(seconds)},
            data={"grant_type": "client_credentials", "scope": " ".join(scopes)},
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

"""Authorizers for servers under test: ``--authorizer-class tests.support.authorizers:ByFile``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from app.api.identity import Identity

DECISIONS = "KK_TEST_DECISIONS"
"""The variable that names a `ByFile`'s file."""


class ByFile:
    """Does what a file says.

    The file is JSON: ``allow`` are the pairs ``[action, resource]`` that are allowed, ``asked``
    those that were asked for, which are added here.
    """

    def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:
        path = Path(os.environ[DECISIONS])
        decisions = json.loads(path.read_text())
        decisions["asked"].append([action, resource])
        path.write_text(json.dumps(decisions))
        return [action, resource] in decisions["allow"]


class ReadOnly:
    """Allows reading; a coroutine."""

    async def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:
        return action == "read"


class Broken:
    """Fails for ``sessions``, and for whatever is executed."""

    def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:
        if resource == "sessions" or action == "execute":
            raise RuntimeError("the password is swordfish")
        return True


class Demanding:
    """Cannot be made without arguments."""

    def __init__(self, something: object) -> None:
        self.something = something


class Mute:
    """Has no method to ask."""


class NoExecute:
    """Allows everything but `execute`."""

    def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:
        return action != "execute"


class NoKernels:
    """Allows everything but what changes kernels."""

    def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:
        return resource != "kernels" or action == "read"

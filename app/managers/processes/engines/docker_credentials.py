"""The credentials with which an image is pulled, from a file in the form of Docker's config.json.

Nothing of the file is ever in a log or in an error.
"""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from ..hosts.errors import ImageUnusable

__all__ = ["HUB", "Login", "credentials_of", "registry_of"]

MOST_BYTES: Final = 2**20

HUB: Final = "docker.io"
_HUBS: Final = (HUB, "index.docker.io", "registry-1.docker.io")


class Login(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine shows a registry, in the names of its API."""

    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct):
    auths: dict[str, _Entry] = {}


def registry_of(image: str) -> str:
    """The registry that an image is pulled from, by its name, as Docker reads it."""
    first, slash, _ = image.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host and first not in _HUBS else HUB


def pulled_from_hub(image: str) -> str:
    """The name of an image of Docker's Hub with its registry in front, which has several names."""
    first, slash, rest = image.partition("/")
    name = rest if slash and first in _HUBS else image
    return f"{HUB}/{name}" if "/" in name else f"{HUB}/library/{name}"


def credentials_of(path: str, image: str) -> Login | None:
    """Who an image is pulled as; None if the file names nobody for its registry.

    It blocks. Raises `ImageUnusable` for a file that cannot be used, or that others may read.
    """
    config, registry = _read(path), registry_of(image)
    for name, entry in config.auths.items():
        host = name.partition("://")[2] or name
        host = host.partition("/")[0]
        if registry == (HUB if host in _HUBS else host):
            return _login(path, entry)
    return None


def _read(path: str) -> _Config:
    try:
        with Path(path).expanduser().open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ImageUnusable(f"Others may use the credentials {path}: chmod 0600")
            return msgspec.json.decode(file.read(MOST_BYTES), type=_Config)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "there is no such home"
        raise ImageUnusable(f"The credentials {path} cannot be read: {why}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ImageUnusable(f"The credentials {path} are not in the form of Docker's") from None


def _login(path: str, entry: _Entry) -> Login:
    if entry.identitytoken:
        return Login(identitytoken=entry.identitytoken)
    try:
        decoded = base64.b64decode(entry.auth, validate=True).decode()
    except ValueError:  # no base64, or no text
        raise ImageUnusable(f"The credentials {path} are not in the form of Docker's") from None
    username, _, password = decoded.partition(":")
    login = Login(username or entry.username, password or entry.password)
    if not (login.username and login.password):
        text = f"The credentials {path} have no password: no helper is asked for one"
        raise ImageUnusable(text)
    return login

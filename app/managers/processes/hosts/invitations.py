"""Which keepers on other hosts may dial in: one file for each, in a directory of this service's.

A join secret has 256 bits and works once. Its digest is stored, never the secret. A keeper whose
answer is lost with the connection may show the secret again: it is bound to the one who showed it
first, by a *nonce* that this one has made and keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from .authority import Credential

__all__ = ["MAX_KEEPER_ID", "Invitations", "Refused"]

logger = logging.getLogger(__name__)

MAX_KEEPER_ID: Final = 100

_KEEPER_ID: Final = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,99}").fullmatch


class Refused(Exception):
    """A keeper may not dial in: a code and a text for it; whether it is to end what it has."""

    def __init__(self, code: str, text: str, *, ends: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.ends = ends


class _Invited(msgspec.Struct, kw_only=True):
    """What a file holds: the newest generation, and its secret, as digests."""

    keeper_id: str
    generation: int
    secret: str
    expires: float
    nonce: str = ""
    has_joined: bool = False


class Invitations:
    """The keepers that may dial in. Methods read and write files, and raise `OSError`.

    ``clock`` is the time of day: an invitation outlives the server.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """Expect a keeper; any earlier one with this id is to end. Its credential and its secret.

        Raises `ValueError` for an id that none can have.
        """
        if not _KEEPER_ID(keeper_id):
            raise ValueError(f"the id of a keeper has 1 to {MAX_KEEPER_ID} letters and digits")
        before = self._read(keeper_id)
        # An id that was forgotten, and comes again, begins with a generation that was not there.
        generation = int(self._clock()) if before is None else before.generation + 1
        secret = secrets.token_hex(32)
        self._write(
            _Invited(
                keeper_id=keeper_id,
                generation=generation,
                secret=_digest(secret),
                expires=self._clock() + seconds,
            )
        )
        return Credential(keeper_id, generation), secret

    def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """Who shows a join secret. Raises `Refused`."""
        invited = self._read(keeper_id) if _KEEPER_ID(keeper_id) else None
        # Compared in any case: how long that takes tells nobody whether there is such a keeper.
        is_right = hmac.compare_digest(_digest(secret), invited.secret if invited else _digest(""))
        if invited is None or not is_right:
            raise Refused("join_secret_unknown", "this secret is not that of a keeper of this id")
        if invited.has_joined or (
            invited.nonce and not hmac.compare_digest(_digest(nonce), invited.nonce)
        ):
            raise Refused("join_secret_used", "another keeper has shown this secret before")
        if self._clock() >= invited.expires:
            raise Refused("join_secret_expired", "this secret has expired")
        if not invited.nonce:
            invited.nonce = _digest(nonce)
            self._write(invited)
        return Credential(keeper_id, invited.generation)

    def check(self, credential: Credential) -> None:
        """See to it that a keeper which has shown its certificate may dial in. Raises `Refused`."""
        invited = self._read(credential.keeper_id)
        if invited is None:
            raise Refused("keeper_forgotten", "nobody needs this keeper any more", ends=True)
        if credential.generation != invited.generation:
            raise Refused("keeper_replaced", "another keeper is in its place", ends=True)
        if not invited.has_joined:
            invited.has_joined = True
            invited.nonce = ""
            self._write(invited)

    def forget(self, keeper_id: str) -> None:
        """Expect a keeper no more: one that dials in is to end."""
        with contextlib.suppress(FileNotFoundError):
            self._path(keeper_id).unlink()

    def _path(self, keeper_id: str) -> Path:
        return self._directory / f"{keeper_id}.json"

    def _read(self, keeper_id: str) -> _Invited | None:
        try:
            invited = msgspec.json.decode(self._path(keeper_id).read_bytes(), type=_Invited)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise OSError(f"{self._path(keeper_id)} is damaged: {error}") from None
        # A file system that does not tell upper and lower case apart finds other files, too.
        return invited if invited.keeper_id == keeper_id else None

    def _write(self, invited: _Invited) -> None:
        path = self._path(invited.keeper_id)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(invited))
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()

"""The keepers on other hosts that may dial in: a file for each, in a directory of this service.

A join secret has 256 bits and works once. Its digest is stored, never the secret. If the answer to
a keeper is lost with the connection, the keeper may show its secret again: the secret is bound to
the keeper that showed it first, by a *nonce* which that keeper has made and keeps.

If several replicas are one service, the invitations are in their registry (`Replicas`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from .authority import Credential, write_private

__all__ = [
    "FORGOTTEN",
    "MAX_KEEPER_ID",
    "Book",
    "Invitations",
    "Invited",
    "OwnBook",
    "Refused",
    "check_keeper_id",
    "digest",
    "new_secret",
    "unknown",
]

MAX_KEEPER_ID: Final = 100

_KEEPER_ID: Final = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,99}").fullmatch


class Refused(Exception):
    """A keeper may not dial in. ``code`` and the text are sent to it.

    If it ``ends``, the keeper is to end its kernels and itself. ``addresses`` are those of the
    replica that it may dial instead, if there is one.
    """

    def __init__(
        self, code: str, text: str, *, ends: bool = False, addresses: Sequence[str] = ()
    ) -> None:
        super().__init__(text)
        self.code = code
        self.ends = ends
        self.addresses = addresses


_UNKNOWN: Final = ("join_secret_unknown", "this secret is not that of a keeper of this id")
FORGOTTEN: Final = ("keeper_forgotten", "nobody needs this keeper any more")


def check_keeper_id(keeper_id: str) -> None:
    """Raise `ValueError` for an id that no keeper can have."""
    if not _KEEPER_ID(keeper_id):
        raise ValueError(f"the id of a keeper has 1 to {MAX_KEEPER_ID} letters and digits")


def new_secret() -> str:
    """A join secret."""
    return secrets.token_hex(32)


def digest(secret: str) -> str:
    """The digest of a secret or a nonce, which is stored in its place."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def unknown(secret: str) -> Refused:
    """The refusal of a keeper whose id is not invited."""
    # A digest is compared all the same, so that the time does not tell whether there is such a
    # keeper.
    hmac.compare_digest(digest(secret), digest(""))
    return Refused(*_UNKNOWN)


class Invited(msgspec.Struct, kw_only=True):
    """The stored invitation of a keeper: its newest generation; secret and nonce as digests."""

    keeper_id: str
    generation: int
    secret: str
    nonce: str = ""
    has_joined: bool = False

    def shows(self, secret: str, nonce: str, *, is_over: bool) -> bool:
        """Accept a keeper's secret; returns whether this object has changed, and is to be stored.

        Raises `Refused` if the secret is another one, if another keeper has shown it before, or if
        its time ``is_over``.
        """
        if not hmac.compare_digest(digest(secret), self.secret):
            raise Refused(*_UNKNOWN)
        if self.has_joined or (self.nonce and not hmac.compare_digest(digest(nonce), self.nonce)):
            raise Refused("join_secret_used", "another keeper has shown this secret before")
        if is_over:
            raise Refused("join_secret_expired", "this secret has expired")
        if self.nonce:
            return False
        self.nonce = digest(nonce)
        return True

    def comes(self, generation: int) -> bool:
        """Accept a keeper with a certificate; returns whether this object is to be stored.

        Raises `Refused` if the certificate is of another generation.
        """
        if generation != self.generation:
            raise Refused("keeper_replaced", "another keeper is in its place", ends=True)
        if self.has_joined:
            return False
        # The keeper has shown its certificate, and so has received it: its secret works no more.
        self.has_joined, self.nonce = True, ""
        return True


class _Filed(Invited, kw_only=True):
    """The content of an invitation's file; ``expires`` is in seconds since the epoch."""

    expires: float


class Book(Protocol):
    """The invitations of a service. All methods raise `OSError` if it cannot be read or stored."""

    async def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """Invite a keeper, for so many seconds; returns its credential and its secret.

        Earlier keepers of this id are to end. Raises `ValueError` for an invalid id.
        """

    async def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """The credential of a keeper that shows its join secret. Raises `Refused`."""

    async def check(self, credential: Credential) -> None:
        """Check that a keeper, which has shown its certificate, may dial in. Raises `Refused`."""

    async def forget(self, keeper_id: str) -> None:
        """Delete a keeper's invitation: if the keeper dials in later, it is told to end."""


class OwnBook:
    """The book of a service that is one server: files, which threads read and write."""

    def __init__(self, invitations: Invitations) -> None:
        self._files = invitations

    async def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """As `Book.invite`."""
        return await asyncio.to_thread(self._files.invite, keeper_id, seconds)

    async def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """As `Book.join`."""
        return await asyncio.to_thread(self._files.join, keeper_id, secret, nonce)

    async def check(self, credential: Credential) -> None:
        """As `Book.check`."""
        await asyncio.to_thread(self._files.check, credential)

    async def forget(self, keeper_id: str) -> None:
        """As `Book.forget`."""
        await asyncio.to_thread(self._files.forget, keeper_id)


class Invitations:
    """The keepers that may dial in. Methods read and write files, and raise `OSError`.

    ``clock`` is the time of day: an invitation outlives the server.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        # Each method reads a file, and then writes it, in some thread. Without the lock a keeper
        # that dials in while its id is invited anew could write the old generation back.
        self._lock = threading.Lock()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """As `Book.invite`."""
        check_keeper_id(keeper_id)
        secret = new_secret()
        with self._lock:
            before = self._read(keeper_id)
            # An id that was forgotten, and comes again, begins with a generation that was not
            # there.
            generation = int(self._clock()) if before is None else before.generation + 1
            self._write(
                _Filed(
                    keeper_id=keeper_id,
                    generation=generation,
                    secret=digest(secret),
                    expires=self._clock() + seconds,
                )
            )
        return Credential(keeper_id, generation), secret

    def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """As `Book.join`."""
        with self._lock:
            # The id comes from a stranger: it becomes a file's name only if it is a valid one.
            invited = self._read(keeper_id) if _KEEPER_ID(keeper_id) else None
            if invited is None:
                raise unknown(secret)
            if invited.shows(secret, nonce, is_over=self._clock() >= invited.expires):
                self._write(invited)
        return Credential(keeper_id, invited.generation)

    def check(self, credential: Credential) -> None:
        """As `Book.check`."""
        with self._lock:
            invited = self._read(credential.keeper_id)
            if invited is None:
                raise Refused(*FORGOTTEN, ends=True)
            # Written at the first time only, as keepers dial in often.
            if invited.comes(credential.generation):
                self._write(invited)

    def forget(self, keeper_id: str) -> None:
        """As `Book.forget`."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._path(keeper_id).unlink()

    def _path(self, keeper_id: str) -> Path:
        return self._directory / f"{keeper_id}.json"

    def _read(self, keeper_id: str) -> _Filed | None:
        try:
            invited = msgspec.json.decode(self._path(keeper_id).read_bytes(), type=_Filed)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise OSError(f"{self._path(keeper_id)} is damaged: {error}") from None
        # A file system that ignores case may have found the file of another id.
        return invited if invited.keeper_id == keeper_id else None

    def _write(self, invited: _Filed) -> None:
        write_private(self._path(invited.keeper_id), msgspec.json.encode(invited))

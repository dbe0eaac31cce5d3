"""Which keepers on other hosts may dial in: one file for each, in a directory of this service's.

A join secret has 256 bits and works once. Its digest is stored, never the secret. A keeper whose
answer is lost with the connection may show the secret again: it is bound to the one who showed it
first, by a *nonce* that this one has made and keeps.

Where several replicas are one service, these invitations are in what they share (`Replicas`).
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
    """A keeper may not dial in: a code and a text for it; whether it is to end what it has.

    ``addresses`` are where it may, if another replica has it.
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
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def unknown(secret: str) -> Refused:
    """The refusal of a secret for which there is no keeper."""
    # Compared all the same: how long that takes tells nobody whether there is such a keeper.
    hmac.compare_digest(digest(secret), digest(""))
    return Refused(*_UNKNOWN)


class Invited(msgspec.Struct, kw_only=True):
    """What is stored of a keeper: the newest generation, and its secret, as digests."""

    keeper_id: str
    generation: int
    secret: str
    nonce: str = ""
    has_joined: bool = False

    def shows(self, secret: str, nonce: str, *, is_over: bool) -> bool:
        """A keeper shows a secret; returns whether that has changed what is to be stored.

        Raises `Refused`: it is another one, was shown by another, or its time ``is_over``.
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
        """A keeper comes with its certificate; returns whether that changes what is to be stored.

        Raises `Refused` for one of another generation.
        """
        if generation != self.generation:
            raise Refused("keeper_replaced", "another keeper is in its place", ends=True)
        if self.has_joined:
            return False
        # The keeper has its certificate for sure: it has shown it. So the secret works no more, not
        # even for the one that has shown it first.
        self.has_joined, self.nonce = True, ""
        return True


class _Filed(Invited, kw_only=True):
    """What a file holds."""

    expires: float


class Book(Protocol):
    """The invitations of a service. Whatever cannot be read or stored raises `OSError`."""

    async def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """Expect a keeper; any earlier one with this id is to end. Its credential and its secret.

        Raises `ValueError` for an id that none can have.
        """

    async def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """Who shows a join secret. Raises `Refused`."""

    async def check(self, credential: Credential) -> None:
        """See to it that a keeper which has shown its certificate may dial in. Raises `Refused`."""

    async def forget(self, keeper_id: str) -> None:
        """Expect a keeper no more: one that dials in is to end."""


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
        # Each method reads a file and writes what follows from that, in a thread of its own. A
        # keeper that dials in while its id is invited anew would write the old generation back.
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
            # A stranger says this id: it names a file only if it is one that a keeper can have.
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
            # Written at the first coming only; keepers dial in often.
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
        # A file system that does not tell upper and lower case apart finds other files, too.
        return invited if invited.keeper_id == keeper_id else None

    def _write(self, invited: _Filed) -> None:
        write_private(self._path(invited.keeper_id), msgspec.json.encode(invited))

"""How a keeper joins a service that cannot dial it: by a join document, and then again and again.

An engine hands the document to the keeper that it starts. It is JSON: the ``addresses`` of the
service and of all its replicas (``host:port``), the ``authority`` that vouches for it
(certificates, PEM), the ``server_name`` that its certificate is for (null: the address's), the id
of this ``keeper``, and a ``secret`` that works once. For the secret the keeper gets a key and a
certificate for it, which it shows from then on, and which the service replaces from time to time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import ssl
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .protocol import Fields

__all__ = ["Address", "Document", "NotInvited", "Trust", "addresses_of", "read_document"]

DOCUMENT_BYTES: Final = 2**16
MAX_ADDRESSES: Final = 64

AWAY_CHARACTERS: Final = 2000
"""How many characters of a hello may name the addresses that cannot be reached."""

Address = tuple[str, int]
"""Host and port."""

PARTIAL_CHAIN: Final = ssl.VerifyFlags(0x80000)
"""`ssl.VERIFY_X509_PARTIAL_CHAIN`, which Python 3.9 does not name."""


class NotInvited(Exception):
    """The join document is of no use; the text says why."""


class Document:
    """The fields of a join document, parsed. Raises `NotInvited` if the document is of no use."""

    def __init__(self, data: bytes) -> None:
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict) or fields.get("join") != 1:
                raise NotInvited("it is of another version")
            self.keeper = _text(fields, "keeper")
            self.secret = _text(fields, "secret")
            self.authority = _text(fields, "authority")
            name = fields.get("server_name")
            self.server_name = None if name is None else _text(fields, "server_name")
            self.addresses = addresses_of(fields["addresses"])
        except (ValueError, KeyError, RecursionError) as error:
            raise NotInvited(f"it makes no sense: {type(error).__name__}") from None


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise NotInvited(f"its {name} is no text")
    return value


def addresses_of(found: object) -> list[Address]:
    """Parse the addresses that a service has sent, a list of texts as `_address` takes them.

    Raises `NotInvited` if it is no such list.
    """
    if not isinstance(found, list) or not 0 < len(found) <= MAX_ADDRESSES:
        raise NotInvited("it has no addresses, or too many")
    return [_address(each) for each in found]


def _address(text: object) -> Address:
    """Parse ``host:port`` or ``[address]:port``. Raises `NotInvited` for any other value."""
    host, _, port = str(text).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise NotInvited("an address of it is not host:port")
    return host, int(port)


def _written(address: Address) -> str:
    """An address as a service writes it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_document(where: str) -> Document:
    """The join document in a file, or on stdin (``-``). Raises `NotInvited` and `OSError`."""
    if where == "-":
        data = sys.stdin.buffer.read(DOCUMENT_BYTES + 1)
    else:
        with open(where, "rb") as file:
            data = file.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise NotInvited("it is too long")
    return Document(data)


class Trust:
    """Whom this keeper trusts, and how it shows who it is; its certificate is in a file (0600)."""

    def __init__(self, document: Document, directory: Path) -> None:
        self._document = document
        self._file = directory / "credential.pem"
        # If the answer to the first hello is lost, the secret is used up: the service takes it once
        # more with this nonce, which nobody else knows.
        self._nonce = secrets.token_hex(32)
        self.has_joined = self._file.exists()
        """Whether this keeper has a certificate."""

    def context(self) -> ssl.SSLContext:
        """The TLS context for the next connection. Raises `OSError` (`ssl.SSLError` is one)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks the name, too
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._document.authority)
        # A certificate that the document names is trusted, even if it is not a root.
        context.verify_flags |= PARTIAL_CHAIN
        if self.has_joined:
            context.load_cert_chain(self._file)
        return context

    def server_name(self, host: str) -> str:
        """The name that the service's certificate must be for."""
        return self._document.server_name or host

    def hello(self, away: Iterable[Address] = ()) -> Fields:
        """The first frame on a connection. The addresses in ``away`` have not answered."""
        said: Fields = {"join": 1}
        named, room = [], AWAY_CHARACTERS
        for text in map(_written, away):
            room -= len(text)
            if room >= 0:
                named.append(text)
        if named:
            said["away"] = named
        if self.has_joined:
            return said
        who = {"keeper": self._document.keeper, "secret": self._document.secret}
        return {**said, **who, "nonce": self._nonce}

    def keep(self, pem: str) -> None:
        """Show this key and certificate from now on. Raises `OSError`."""
        temporary = self._file.with_name(f"credential.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(pem)
        # Check that it can be used while the credential before is still there.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(temporary)
        # rename(2) is atomic: a keeper that is killed here has the old credential or the new one.
        os.replace(temporary, self._file)
        self.has_joined = True

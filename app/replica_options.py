"""Options for several replicas that share one registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from .agent_options import host_and_port
from .option_types import AbsolutePathOrNone, OptionGroup, spelled

__all__ = ["Replicas"]

_SCHEMES: Final = ("postgresql", "postgres")


def _postgresql(value: SecretStr) -> SecretStr:
    """Check the URL of a PostgreSQL database. Raises `ValueError`, whose text repeats none of it.

    A part of a password with an unescaped ``@`` or ``/`` would be taken by libpq for the host or
    the port, and would be in libpq's own errors.
    """
    url = value.get_secret_value()
    if not url:
        return value
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("not a URL like postgresql://user:password@host:5432/name") from None
    if parts.scheme not in _SCHEMES or not parts.path.strip("/") or parts.netloc.count("@") > 1:
        raise ValueError(
            "not a URL like postgresql://user:password@host:5432/name "
            "(in a password, write @ as %40, : as %3A and / as %2F)"
        )
    if "password=" in parts.query:
        raise ValueError("the password goes before the @, and not into the query")
    return value


class Replicas(OptionGroup):
    """Several replicas behind one address."""

    table = "replicas"

    registry_url: Annotated[SecretStr, AfterValidator(_postgresql)] = Field(
        SecretStr(""),
        description="URL of the PostgreSQL database in which replicas share their registry; empty "
        "for a registry of this server's own. See docs/replicas.md.",
    )
    replica_name: Annotated[
        str, spelled(r"[A-Za-z0-9._-]{1,64}", "not up to 64 of A-Z a-z 0-9 . _ -")
    ] = Field(
        "", description="Name of this replica, of its own; by default its host's name and port."
    )
    lease_seconds: float = Field(
        10.0,
        ge=1,
        le=300,
        description="Seconds without a sign of life after which a replica's kernels are taken "
        "over by the others; a replica gives one five times as often.",
    )
    replica_listen: Annotated[
        str, spelled(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}", "not host:port")
    ] = Field(
        "",
        description="Address and TCP port, like 0.0.0.0:8889, where replicas of other hosts dial "
        "this one, by TLS; empty where all replicas share a state directory.",
    )
    replica_address: str = Field(
        "",
        description="Where they dial, as seen from their hosts: host or host:port; by default the "
        "address of replica_listen, or the name of this machine.",
    )
    replica_certificate: AbsolutePathOrNone = Field(
        None,
        description="PEM file (0600) with a private key, the certificate that other replicas see, "
        "and those that vouch for theirs; by default one of an authority in the registry.",
    )

    @field_validator("replica_listen", "replica_address")
    @classmethod
    def _replica_places(cls, value: str) -> str:
        if value:
            host_and_port(value, 0)
        return value

    @field_validator("replica_certificate")
    @classmethod
    def _replica_file(cls, value: Path | None) -> Path | None:
        if value is not None and not os.path.isfile(value):
            raise ValueError(f"there is no file {value}")
        return value

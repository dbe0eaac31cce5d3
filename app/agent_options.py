"""The options about keepers on other hosts that dial in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from .option_types import AbsolutePathOrNone, OptionGroup, Words, spelled

__all__ = ["Agents", "host_and_port"]

_ADDRESS: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{1,5}))?"
).fullmatch

MAX_ADDRESSES: Final = 8


def host_and_port(address: str, port: int) -> tuple[str, int]:
    """Parse ``host``, ``host:port`` or ``[address]:port``; ``port`` is the default.

    Raises `ValueError` for any other text, and for a port above 65535.
    """
    found = _ADDRESS(address)
    said = int(found["port"] or port) if found else 65536
    if found is None or said > 65535:
        raise ValueError("not host:port, like kernels.example.org:8890")
    return found["six"] or found["host"], said


class Agents(OptionGroup):
    """Keepers on other hosts that dial in; see docs/engines.md."""

    table = "agents"

    agent_listen: Annotated[
        str, spelled(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}", "not host:port")
    ] = Field(
        "",
        description="Address and TCP port, like 0.0.0.0:8890, where keepers on other hosts dial "
        "in, by TLS; empty for nowhere.",
    )
    agent_addresses: Words = Field(
        [],
        description="Where keepers dial, as seen from their hosts: host or host:port, tried in "
        "turn; by default the address of agent_listen, or the name of this machine.",
    )
    agent_certificate: AbsolutePathOrNone = Field(
        None,
        description="PEM file (0600) with a private key, the certificate that keepers see, and "
        "those that vouch for it; by default one of the service's own authority.",
    )

    @field_validator("agent_listen")
    @classmethod
    def _port(cls, value: str) -> str:
        if value:
            host_and_port(value, 0)
        return value

    @field_validator("agent_certificate")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value is not None and not os.path.isfile(value):
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("agent_addresses")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        if len(value) > MAX_ADDRESSES:
            raise ValueError(f"more than {MAX_ADDRESSES} addresses")
        for address in value:
            host_and_port(address, 0)
        return value

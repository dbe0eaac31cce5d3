"""The service as hosts and engines know it: by a name, which the next server has as well.

Several servers may be one service, as replicas of each other. Then each kernel is one replica's at
a time, and that one alone has jobs of the kernel submitted or ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from ...errors import KeeperUnavailable
from .authority import write_private

__all__ = ["OwnService", "Service", "service_id"]


class Service(Protocol):
    """The service that this server is, alone or with other replicas.

    Its methods raise `KeeperUnavailable` while its name, or the registry, cannot be read.
    """

    is_alone: bool
    """Whether no other server is the same service."""

    async def name(self) -> str:
        """The name of the service, of 16 hexadecimal digits."""

    async def check_own(self, kernel_id: str) -> None:
        """Raise `KeeperUnavailable` if another server of the service has, or may have, a kernel."""

    async def generations(self, keeper_ids: Collection[str]) -> Mapping[str, int]:
        """The newest generations of those keepers that another server of the service may have."""


class OwnService:
    """A service that is one server at a time: the one that has the state directory."""

    is_alone = True
    """As `Service.is_alone`."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    async def name(self) -> str:
        """As `Service.name`."""
        return await asyncio.to_thread(service_id, self._state_dir)

    async def check_own(self, kernel_id: str) -> None:
        """As `Service.check_own`."""

    async def generations(self, keeper_ids: Collection[str]) -> Mapping[str, int]:  # noqa: ARG002
        """As `Service.generations`."""
        return {}


def service_id(state_dir: Path) -> str:
    """The service's name, which is stored in the state directory; each server of that reads it.

    Raises `KeeperUnavailable` if the name can be neither read nor stored.
    """
    path = state_dir / "service-id"
    try:
        # The name must not change: keepers on hosts are found by it. So the file appears in one
        # step, made by the first thread or server, and is only read afterwards.
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another thread was faster
                write_private(path, secrets.token_hex(8).encode(), anew=True)
        name = path.read_text()
    except OSError as error:
        raise KeeperUnavailable(f"The name of this service cannot be stored: {error}") from error
    if len(name) != 16 or not set(name) <= set("0123456789abcdef"):
        raise KeeperUnavailable(f"{path} is not what a server has written: remove it")
    return name

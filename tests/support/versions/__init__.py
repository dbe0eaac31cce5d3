"""Servers and keepers of other versions of the protocol, as processes.

They are this version's, with another number and without what that version had not.
"""

from __future__ import annotations

from tests.support.server import ServerProcess

__all__ = ["ServerOfVersion", "server_of"]


class ServerOfVersion(ServerProcess):
    """A server of another version, whose keeper is of that version, too."""

    version = 0

    @property
    def command(self) -> list[str]:
        python, _, _, *arguments = super().command
        return [python, "-m", "tests.support.versions.server", str(self.version), *arguments]


def server_of(version: int) -> type[ServerProcess]:
    """The kind of servers of this version of the protocol."""
    return type(f"ServerOfVersion{version}", (ServerOfVersion,), {"version": version})

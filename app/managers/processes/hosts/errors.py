"""Why a host cannot be used, each reason with a stable code.

KeeperUnavailable
└── HostUnusable 503
    ├── HostUnreachable
    ├── HostKeyRefused
    ├── HostLoginRefused
    ├── HostWithoutPython
    ├── HostFull
    ├── HostKeeperIncompatible
    ├── KeepersNotHeard
    └── EngineNotInstalled

A start that fails for one of them is answered with `kernel_start_failed`, and the code is its
``cause``.
"""

from __future__ import annotations

from typing import Final

from ...errors import KeeperUnavailable

__all__ = [
    "NO_KEEPER",
    "EngineNotInstalled",
    "HostFull",
    "HostKeeperIncompatible",
    "HostKeyRefused",
    "HostLoginRefused",
    "HostUnreachable",
    "HostUnusable",
    "HostWithoutPython",
    "KeepersNotHeard",
]


class HostUnusable(KeeperUnavailable):
    """No keeper can be started on the host."""

    status = 503
    code = "host_unusable"


class HostUnreachable(HostUnusable):
    """The host does not answer, or the connection to it breaks."""

    code = "host_unreachable"


class HostKeyRefused(HostUnusable):
    """The host shows another key than the one that is known, or none is known."""

    code = "host_key_refused"


class HostLoginRefused(HostUnusable):
    """The host does not let the user in."""

    code = "host_login_refused"


class HostWithoutPython(HostUnusable):
    """The host has no Python that can run the keeper."""

    code = "host_without_python"


class HostFull(HostUnusable):
    """The host has no room for the keeper's files."""

    code = "host_full"


class HostKeeperIncompatible(HostUnusable):
    """The keeper that runs on the host speaks another version than this server."""

    code = "host_keeper_incompatible"


class KeepersNotHeard(HostUnusable):
    """The server does not listen for keepers on other hosts."""

    code = "keepers_not_heard"


class EngineNotInstalled(HostUnusable):
    """The server lacks the package that it reaches such hosts with."""

    code = "engine_not_installed"


NO_KEEPER: Final[tuple[type[KeeperUnavailable], ...]] = (
    *(KeeperUnavailable, HostUnusable, HostUnreachable, HostKeyRefused, HostLoginRefused),
    *(HostWithoutPython, HostFull, HostKeeperIncompatible, KeepersNotHeard, EngineNotInstalled),
)
"""Every reason why the keeper of a kernel cannot be asked, here or on another host."""

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
    ├── ImageUnusable
    ├── JobOutOfMemory
    ├── JobEvicted
    ├── JobNotStarted
    ├── QuotaMet
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
    "ImageUnusable",
    "JobEvicted",
    "JobNotStarted",
    "JobOutOfMemory",
    "KeepersNotHeard",
    "QuotaMet",
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


class ImageUnusable(HostUnusable):
    """The image of the container is not there, and cannot be had."""

    code = "image_unusable"


class JobOutOfMemory(HostUnusable):
    """The job has ended for want of memory."""

    code = "out_of_memory"


class JobEvicted(HostUnusable):
    """The engine has ended the job, as it needed the room or the node."""

    code = "job_evicted"


class JobNotStarted(HostUnusable):
    """The job has waited for too long."""

    code = "job_not_started"


class QuotaMet(HostUnusable):
    """The engine lets this service have no further job."""

    code = "quota_met"


class EngineNotInstalled(HostUnusable):
    """The server lacks the package that it reaches such hosts with."""

    code = "engine_not_installed"


NO_KEEPER: Final[tuple[type[KeeperUnavailable], ...]] = (
    *(KeeperUnavailable, HostUnusable, HostUnreachable, HostKeyRefused, HostLoginRefused),
    *(HostWithoutPython, HostFull, HostKeeperIncompatible, KeepersNotHeard, EngineNotInstalled),
    *(ImageUnusable, JobOutOfMemory, JobEvicted, JobNotStarted, QuotaMet),
)
"""Every reason why the keeper of a kernel cannot be asked, here or on another host."""

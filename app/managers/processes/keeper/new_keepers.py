"""Makes the server's client of its keepers, by the options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ....keeper.output import OUTPUT_BYTES
from ....machine import network_file_system
from ....settings import Settings
from .greeting import ReplicaTerms
from .keepers import Keepers

__all__ = ["new_keepers"]

logger = logging.getLogger(__name__)


def new_keepers(
    settings: Settings, directory: Path, own: Sequence[Path], terms: ReplicaTerms | None = None
) -> Keepers:
    """The client of the keepers in ``directory``. The files ``own`` are removed with the server.

    A server that is one of several replicas gives its ``terms``. Logs a warning if kernels end with
    the server although nobody has asked for that, or if its state directory cannot be locked.
    """
    network = network_file_system(settings.state_dir)
    if not settings.keeps and settings.on_shutdown == "keep":
        logger.warning(
            "kernels end with this server: %s (on_shutdown=stop says so)", settings.why_not_kept
        )
    elif settings.keeps and network is not None:
        logger.warning(
            "the state directory %s is on a network file system (%s), whose locks cannot be relied "
            "on: two servers could take the same kernels for theirs; either set on_shutdown=stop "
            "and a state_dir on a tmpfs, or a state_dir on a local disk",
            settings.state_dir,
            network,
        )
    return Keepers(
        directory,
        log_bytes=settings.log_bytes,
        log_total_bytes=settings.log_total_bytes,
        log_age=settings.log_age,
        orphan_timeout=settings.orphan_timeout if settings.keeps else None,
        output_bytes=OUTPUT_BYTES,
        own=own,
        terms=terms,
    )

"""The places of a kernel's clients as the registry stores them for the next server."""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Final

from ..log.message_log import MessageLog
from ..log.places import Places, SessionPlace
from ..messages.attachments import Attachments
from .registry import Registry

__all__ = ["RegisteredPlaces", "from_journal", "journal_of"]


KNOWN_SECONDS: Final = 5.0
"""How long a new session waits until it is stored."""


class RegisteredPlaces:
    """A `PlaceStore` for the clients of one kernel: in the registry, in batches.

    As `RegisteredExecutions`, it serves one term of the kernel, and stores nothing after that.
    """

    def __init__(
        self, registry: Registry, kernel_id: str, log: MessageLog, clients: Attachments
    ) -> None:
        self._registry = registry
        self._kernel_id = kernel_id
        self._term = registry.term_of(kernel_id)
        self._log = log
        self._clients = clients

    def moved(self) -> None:
        """Store the places soon, as they are at the time of writing."""
        if self._registry.term_of(self._kernel_id) == self._term:
            self._registry.note_places(self._kernel_id, self._places)

    async def stored(self) -> None:
        """Return when the places are stored, or cannot be stored just now. Bounded."""
        # A client does not wait for a registry whose last write has failed, as on a full disk: it
        # is let in, and may receive again after a crash what it has received before.
        if not self._registry.fails:
            await self._registry.stored(KNOWN_SECONDS)

    def _places(self) -> Places:
        return Places.of(self._kernel_id, self._log.epoch, self._clients.places())


# The form of versions up to 0.2: a file for each kernel

_MAGIC: Final = b"kkjourn3"
_HEAD: Final = Struct("<8s16s")  # magic, epoch
_PLACE: Final = Struct("<16sQQd")  # of which session, cursor, offset, seconds since the epoch
_PLACES_AT: Final = 64


def journal_of(state_dir: Path, kernel_id: str) -> Path:
    """Where a server of a version up to 0.2 has stored the places of a kernel's clients."""
    return state_dir / "journals" / f"{kernel_id}.journal"


def from_journal(path: Path, kernel_id: str) -> Places | None:
    """The places that a server of a version up to 0.2 has left; None if there are none."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _PLACES_AT or data[: len(_MAGIC)] != _MAGIC:
        return None
    _, epoch = _HEAD.unpack_from(data)
    slots = range(_PLACES_AT, len(data) - _PLACE.size + 1, _PLACE.size)
    found = [SessionPlace(*_PLACE.unpack_from(data, at)) for at in slots]
    used = sorted((place for place in found if place.left), key=lambda place: place.left)
    return Places.of(kernel_id, epoch.decode("ascii", "replace"), used)

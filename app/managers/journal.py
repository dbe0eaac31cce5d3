"""What a kernel's log numbered, and how far its readers came, in a file that survives the process.

The file is mapped into memory: to note something is to write a few bytes there, without a system
call, and what was written is the operating system's to keep, however the process ends. It holds no
output: a message that the keeper has is known by the end of its id, and found there. What nobody
else has (replies, what the server says itself) is kept whole.

Layout: a head; places of sessions; slots, one for each of the newest `SLOTS` numbers; a ring of the
messages that are kept whole; which of the requests that waited were sent to the kernel after all.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple, Self

from app.managers.entries import Entry, Position
from app.protocol import v1
from app.protocol.messages import Message

__all__ = ["BATCH", "SLOTS", "Journal", "Noted", "UnusableJournal", "key_of"]

SLOTS: Final = 2**15
"""Numbers that are remembered; of older ones only what is on disk is known after a crash."""

BODY_BYTES: Final = 2**20
"""Room for the messages that are kept whole; a single one may take a quarter."""

PLACES: Final = 256
"""Sessions whose places are remembered; the one longest unchanged makes room for another."""

BATCH: Final = 64
"""How many numbers may wait to be noted: those of messages that the keeper has too. After a crash
they get the same numbers again, as they follow upon each other in the same order."""

SENT: Final = 8192
"""Requests that had waited, and of which it is remembered that they were sent."""

_MAGIC: Final = b"kkjourn1"
_HEAD: Final = Struct("<8s16s64s16s")  # magic, epoch, the server's session, identity of the sockets
_PLACE: Final = Struct("<16sQQd")  # of which session, cursor, offset, seconds since the epoch
# Key, offset, bytes of the frame, kind; the number last, so that it stands for the whole slot.
_SLOT: Final = Struct("<16sQIB3xQ")
_BATCHES: Final = [Struct("<" + "16sQIB3xQ" * count) for count in range(BATCH + 1)]
_BODY: Final = Struct("<QQ")  # as the key: place in the ring (counted on and on), length
_OWNER: Final = Struct("<h")  # length of the owner, -1 for every session

_KEPT, _WHOLE, _LOST = 1, 2, 3
_PUBLISHED, _TRANSIENT = 0x40, 0x80  # flags beside these

_PLACES_AT: Final = 4096
_SLOTS_AT: Final = _PLACES_AT + 12288
_BODY_AT: Final = _SLOTS_AT + SLOTS * _SLOT.size
_SENT_AT: Final = _BODY_AT + BODY_BYTES  # where the files of older versions end
_SENT_HEAD: Final = Struct("<QQ")  # how many were ever sent; whether the process is being replaced
_SENT_KEYS_AT: Final = _SENT_AT + _SENT_HEAD.size
_KEY_BYTES: Final = 16
_FILE_BYTES: Final = _SENT_KEYS_AT + SENT * _KEY_BYTES


class UnusableJournal(Exception):
    """A journal that cannot be made or read; the text says why."""


class Noted(NamedTuple):
    """One number: what is known of its message.

    ``key`` finds it among what the keeper has, unless it is empty; ``message`` is there if it was
    kept whole. With neither it is lost.
    """

    seq: int
    offset: int
    size: int
    key: bytes
    message: Message | None
    owner: str | None
    transient: bool
    published: bool
    """Whether the kernel has published it; the rest are replies, and what the server said."""


def key_of(message: Message) -> bytes:
    """What tells a kernel's message from its others: the end of its id, which differs most."""
    return message.header.msg_id[-16:].encode()[:16].ljust(16, b"\0")


class Journal:
    """Of one kernel. Raises `UnusableJournal` when its file cannot be had."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self.alone = False
        """Whether nobody else hears what the kernel publishes."""
        self._written = 0  # bytes of the ring, ever
        self._places: dict[bytes, int] = {}  # the longest unchanged first

    @classmethod
    def create(cls, path: Path, epoch: str, session: str, identity: bytes) -> Self:
        """A new journal, in place of what was there."""
        try:
            path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                # A hole that the disk cannot fill would end this process at a write.
                os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                memory = mmap.mmap(descriptor, _FILE_BYTES)
            finally:
                os.close(descriptor)
        except (OSError, AttributeError) as error:  # there is no fallocate on some platforms
            path.unlink(missing_ok=True)
            raise UnusableJournal(f"{path} cannot be made: {error}") from None
        head = (epoch.encode(), session.encode(), identity)
        _HEAD.pack_into(memory, 0, _MAGIC, *head)
        return cls(path, memory)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The journal that another process has left; to be read, and then to be gone on with."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size == _SENT_AT:
                    os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                memory = mmap.mmap(descriptor, _FILE_BYTES)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise UnusableJournal(f"{path} cannot be read: {error}") from None
        if bytes(memory[:8]) != _MAGIC:
            raise UnusableJournal(f"{path} is no journal of this version")
        journal = cls(path, memory)
        found = [(when, key, index) for index, key, _, when in journal._read_places()]
        journal._places = {key: index for _, key, index in sorted(found)}
        return journal

    @property
    def head(self) -> tuple[str, str, bytes]:
        """The log's epoch, the server's own session, and the identity of its sockets."""
        _, epoch, session, identity = _HEAD.unpack_from(self._memory, 0)
        return (epoch.decode("ascii", "replace"), session.rstrip(b"\0").decode(), identity)

    def set_identity(self, identity: bytes) -> None:
        """The kernel's process, and so its sockets, are others now."""
        _, epoch, session, _ = _HEAD.unpack_from(self._memory, 0)
        _HEAD.pack_into(self._memory, 0, _MAGIC, epoch, session, identity)

    # Numbers

    def note_kept(self, entries: Sequence[Entry]) -> None:
        """These have got their numbers, and the keeper has them too; at most `BATCH`, in order."""
        fields: list[bytes | int] = []
        for entry in entries:
            message = entry.message
            key = message.header.msg_id[-16:].encode()
            fields += (key, entry.offset, len(message.frame), _KEPT, entry.seq)
        first, count = entries[0].seq % SLOTS, len(entries)
        before = min(SLOTS - first, count)  # it may come round in between
        place = _SLOTS_AT + first * _SLOT.size
        _BATCHES[before].pack_into(self._memory, place, *fields[: 5 * before])
        if before < count:
            _BATCHES[count - before].pack_into(self._memory, _SLOTS_AT, *fields[5 * before :])

    def note_whole(self, entry: Entry, *, published: bool = False) -> None:
        """This has got its number, and nobody else has it."""
        kind = (_TRANSIENT if entry.transient else 0) | (_PUBLISHED if published else 0)
        frame = entry.message.frame
        key = self._keep_whole(frame, entry.owner)
        kind |= _WHOLE if key else _LOST
        place = _SLOTS_AT + entry.seq % SLOTS * _SLOT.size
        _SLOT.pack_into(self._memory, place, key, entry.offset, len(frame), kind, entry.seq)

    def note_hole(self, start: int, end: Position) -> None:
        """The numbers from ``start`` to this place stand for what nobody knows."""
        for seq in range(start, end.cursor):
            place = _SLOTS_AT + seq % SLOTS * _SLOT.size
            _SLOT.pack_into(self._memory, place, b"", end.offset, 0, _LOST, seq)

    def _keep_whole(self, frame: bytes, owner: str | None) -> bytes:
        name = b"" if owner is None else owner.encode("utf-8", "surrogatepass")
        data = b"".join((_OWNER.pack(-1 if owner is None else len(name)), name, frame))
        if len(data) > BODY_BYTES // 4:
            return b""
        start = self._written % BODY_BYTES
        if start + len(data) > BODY_BYTES:  # none is cut in two
            self._written += BODY_BYTES - start
            start = 0
        place = self._written
        self._memory[_BODY_AT + start : _BODY_AT + start + len(data)] = data
        self._written += len(data)
        return _BODY.pack(place, len(data))

    def read(self) -> list[Noted]:
        """The newest numbers, without a hole, in order; later ones are noted behind them."""
        slots = {}
        with memoryview(self._memory) as whole, whole[_SLOTS_AT:_BODY_AT] as part:
            for index, slot in enumerate(_SLOT.iter_unpack(part)):
                if slot[4] and slot[4] % SLOTS == index:
                    slots[slot[4]] = slot
                elif slots and not slot[4]:  # it has not come round yet
                    break
        bodies = [_BODY.unpack(slot[0]) for slot in slots.values() if slot[3] & 0x3F == _WHOLE]
        self._written = max((place + length for place, length in bodies), default=0)
        found = []
        seq = max(slots, default=0)
        while seq in slots:
            found.append(self._noted(*slots[seq]))
            seq -= 1
        return found[::-1]

    def _noted(self, key: bytes, offset: int, size: int, kind: int, seq: int) -> Noted:
        transient = bool(kind & _TRANSIENT)
        published = bool(kind & _PUBLISHED)
        kind &= 0x3F
        message, owner = None, None
        if kind == _WHOLE:
            place, length = _BODY.unpack(key)
            if self._written - place <= BODY_BYTES:
                start = _BODY_AT + place % BODY_BYTES
                message, owner = _restore(self._memory[start : start + length], seq)
        if kind == _KEPT:
            return Noted(seq, offset, size, key, None, None, transient, published=True)
        return Noted(seq, offset, size, b"", message, owner, transient, published)

    # Places

    def put_place(self, session: str, place: Position) -> None:
        """Remember how far the client of a session is known to have come."""
        key = _session_key(session)
        index = self._places.pop(key, None)
        if index is None:
            index = len(self._places)
            if index >= PLACES:
                index = self._places.pop(next(iter(self._places)))
        self._places[key] = index
        _PLACE.pack_into(self._memory, _PLACES_AT + index * _PLACE.size, key, *place, time.time())

    def place_of(self, session: str, max_age: float) -> Position | None:
        """How far a session has come, if that is known and not older than so many seconds."""
        index = self._places.get(_session_key(session))
        if index is None:
            return None
        _, cursor, offset, when = _PLACE.unpack_from(self._memory, _PLACES_AT + index * _PLACE.size)
        return Position(cursor, offset) if time.time() - when <= max_age else None

    def _read_places(self) -> list[tuple[int, bytes, Position, float]]:
        found = []
        for index in range(PLACES):
            key, cursor, offset, when = _PLACE.unpack_from(
                self._memory, _PLACES_AT + index * _PLACE.size
            )
            if when:
                found.append((index, key, Position(cursor, offset), when))
        return found

    # Requests that have waited

    def note_sent(self, execution_id: str, session: str) -> None:
        """This request leaves for the kernel next, whatever the registry still says of it."""
        count, replaced = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        place = _SENT_KEYS_AT + count % SENT * _KEY_BYTES
        self._memory[place : place + _KEY_BYTES] = _request_key(execution_id, session)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count + 1, replaced)

    def take_back_sent(self) -> None:
        """The request that was noted last has not left: the socket took no more."""
        count, replaced = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        place = _SENT_KEYS_AT + (count - 1) % SENT * _KEY_BYTES
        self._memory[place : place + _KEY_BYTES] = bytes(_KEY_BYTES)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count - 1, replaced)

    def was_sent(self, execution_id: str, session: str) -> bool:
        """Whether a request that had waited was sent."""
        key = _request_key(execution_id, session)
        keys = self._memory[_SENT_KEYS_AT:_FILE_BYTES]
        return any(keys[at : at + _KEY_BYTES] == key for at in range(0, len(keys), _KEY_BYTES))

    @property
    def replaced(self) -> bool:
        """Whether the kernel's process was about to be stopped, for another to follow."""
        return bool(_SENT_HEAD.unpack_from(self._memory, _SENT_AT)[1])

    @replaced.setter
    def replaced(self, value: bool) -> None:
        count, _ = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count, value)

    def close(self) -> None:
        """Nothing more will be noted; what was stays for the next process."""
        self._memory.close()

    def remove(self) -> None:
        """The kernel is gone, and nobody will ask for its numbers."""
        self._memory.close()
        self._path.unlink(missing_ok=True)


def _request_key(execution_id: str, session: str) -> bytes:
    return _session_key(f"{execution_id}\0{session}")


def _session_key(session: str) -> bytes:
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _restore(data: bytes, seq: int) -> tuple[Message | None, str | None]:
    (length,) = _OWNER.unpack_from(data)
    end = _OWNER.size + max(length, 0)
    owner = None if length < 0 else data[_OWNER.size : end].decode("utf-8", "surrogatepass")
    try:
        message = v1.restore(data[end:])
    except ValueError:
        return None, None
    message.seq = seq
    return message, owner

"""Logs that are small beside what kernels say, and disks that are full, through the keeper."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from app.keeper.log import SEGMENT_BYTES
from app.managers.errors import KernelUnreachable
from app.managers.log.message_log import Gap, MessageLog, Position
from app.managers.processes.keeper.client import Keeper
from tests.keeper.conftest import EPOCH, WAIT, Ear, Open
from tests.kernels.driver import free_ports
from tests.support.home import Home
from tests.support.processes import eventually

MIB = 2**20


class Publisher:
    """A kernel's iopub."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self.socket.sndhwm = 64  # it is held up, and so nobody's memory has all of it
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        ports = {**free_ports(), "iopub_port": port}
        self.info = {"transport": "tcp", "ip": "127.0.0.1", "key": "", **ports}

    async def is_heard(self) -> None:
        assert await asyncio.to_thread(self.socket.poll, WAIT * 1000)
        assert self.socket.recv() == b"\x01"

    def say(self, number: int, content: bytes) -> None:
        """One message; its content is ``content`` behind the number."""
        header = b'{"msg_id": "%d", "msg_type": "stream", "session": "kernel"}' % number
        text = b'{"n": %d, "text": "%s"}' % (number, content)
        self.socket.send_multipart([b"", b"<IDS|MSG>", b"", header, b"{}", b"{}", text], copy=False)


@pytest.fixture
def publish() -> Iterator[Any]:
    """``publish()``: another kernel's iopub."""
    context: zmq.Context[Any] = zmq.Context()
    made: list[Publisher] = []

    def publish() -> Publisher:
        made.append(Publisher(context))
        return made[-1]

    yield publish
    for publisher in made:
        publisher.socket.close(linger=0)
    context.term()


async def heard(keeper: Keeper, publisher: Publisher, log: Path, kernel_id: str = "k") -> Ear:
    ear = Ear(keeper, kernel_id)
    await ear.line.hear(log, publisher.info, anew=True)
    await publisher.is_heard()
    return ear


async def reaches(ear: Ear, number: int) -> None:
    """The log has all messages before this number."""
    await eventually(lambda: ear.next == number, WAIT)


def read(log: Path, ear: Ear) -> tuple[list[tuple[int, int, int]], Gap]:
    """Number, offset and size of what is there; and what is not, together."""
    reading = MessageLog(log, ear.line.kernel_id)
    reading.begin_at(EPOCH, ear.bells[-1])
    first = reading.start
    found: list[tuple[int, int, int]] = []
    gap = [first.cursor - 1, first.offset]
    while reading.unseen:
        entries = reading.next_unseen(64, MIB)
        if isinstance(entries, Gap):
            gap = [gap[0] + entries.messages, gap[1] + entries.bytes]
            end = reading.end
            reading.show(Position(end.cursor + entries.messages, end.offset + entries.bytes))
            continue
        for entry in entries:
            reading.step(entry)
            told = bytes(entry.message.part(3))[:30]
            assert told.startswith(b'{"n": %d,' % entry.seq), "it is another message"
            found.append((entry.seq, entry.offset, entry.size))
    reading.let_go()
    return found, Gap(*gap)


async def test_of_two_gigabytes_the_newest_are_there_and_the_gap_tells_the_rest_to_the_byte(
    home: Home, open_keeper: Open, publish: Any
) -> None:
    bound, size, count = 64 * MIB, 4_000_000, 512
    keeper = await open_keeper(log_bytes=bound)
    publisher = publish()
    ear = await heard(keeper, publisher, home.path / "log")
    content = b"x" * size

    def flood() -> None:
        for number in range(1, count + 1):
            publisher.say(number, content)

    await asyncio.to_thread(flood)
    await reaches(ear, count + 1)
    found, gap = read(home.path / "log", ear)
    assert [number for number, _, _ in found] == list(range(gap.messages + 1, count + 1))
    assert gap.bytes == found[0][1]
    assert ear.bells[-1].end[1] == gap.bytes + sum(size for _, _, size in found) > 2 * 10**9
    kept = sum(file.stat().st_size for file in (home.path / "log").glob("*.log"))
    # The newest 64 MiB, and up to one file more; each file is of one message here.
    assert bound <= kept <= bound + 2 * SEGMENT_BYTES


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_one_message_larger_than_the_log_may_be_is_there_until_the_next(
    home: Home, open_keeper: Open, publish: Any, size: int
) -> None:
    keeper = await open_keeper(log_bytes=65536)
    publisher = publish()
    ear = await heard(keeper, publisher, home.path / "log")
    for number in range(1, 6):
        publisher.say(number, b"x" * size)
        await reaches(ear, number + 1)
        found, gap = read(home.path / "log", ear)
        assert found[-1][0] == number
        assert found[-1][2] > size
        assert gap.messages + len(found) == number
        assert gap.bytes == found[0][1]
    kept = sum(file.stat().st_size for file in (home.path / "log").glob("*.log"))
    assert kept < 2 * size + 2 * 65536


SMALL_DISK = '''
"""For the keeper only: the files of kernels' logs have so many bytes together, and no more."""
import errno, os, sys
from pathlib import Path

ROOT, LIMIT = Path({root!r}), {limit}
allocate = os.posix_fallocate

def used(besides):
    found = 0
    for path in ROOT.glob("*/*"):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_ino != besides:
            found += status.st_blocks * 512
    return found

def small(descriptor, offset, length):
    if used(os.fstat(descriptor).st_ino) + offset + length > LIMIT:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    allocate(descriptor, offset, length)

if "app.keeper" in sys.orig_argv:
    os.posix_fallocate = small
'''


@pytest.fixture
def small_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``small_disk(LIMIT)``: where the keeper that is started next has the logs in ``logs``."""

    def small_disk(limit: int) -> Path:
        logs = home.path / "logs"
        logs.mkdir()
        where = home.path / "site"
        where.mkdir()
        (where / "sitecustomize.py").write_text(SMALL_DISK.format(root=str(logs), limit=limit))
        monkeypatch.setenv("PYTHONPATH", str(where))
        return logs

    return small_disk


KIB = 1024

# A log takes 32 KiB at first, 128, 512 and 2048 KiB then; and 32 KiB that are held ready. There
# are two. The first number is all that they need to begin.
SEGMENTS = {
    "the second": 2 * (32 + 32) + 16,
    "the third": 2 * (32 + 128 + 32) + 16,
    "the fourth": 2 * (32 + 128 + 512 + 32) + 16,
    "the fifth": 2 * (32 + 128 + 512 + 2048 + 32) + 16,
}


@pytest.mark.parametrize("limit", SEGMENTS.values(), ids=SEGMENTS)
async def test_a_disk_that_is_full_at_any_segment_makes_logs_shorter_and_nothing_else(
    home: Home, open_keeper: Open, publish: Any, small_disk: Any, limit: int
) -> None:
    logs = small_disk(limit * KIB)
    keeper = await open_keeper()
    publishers = [publish(), publish()]
    ears = [
        await heard(keeper, publisher, logs / name, name)
        for name, publisher in zip("ab", publishers, strict=True)
    ]
    pid = keeper.pid
    count, text = 4000, b"x" * 1000
    for number in range(1, count + 1):
        publishers[0].say(number, text)
        if number % 10 == 0:  # one that says less, on the same disk
            publishers[1].say(number // 10, text)
    await reaches(ears[0], count + 1)
    await reaches(ears[1], count // 10 + 1)
    for name, ear in zip("ab", ears, strict=True):
        found, gap = read(logs / name, ear)
        total = ear.bells[-1].end
        assert len(found) + gap.messages == total[0] - 1
        assert sum(size for _, _, size in found) + gap.bytes == total[1]
        assert found, "something is always there"
        assert found[-1][0] == total[0] - 1, "and that is the newest"
    used = sum(path.stat().st_blocks * 512 for path in logs.glob("*/*"))
    assert used <= limit * KIB
    assert keeper.pid == pid
    told = (home.state_dir / "keeper" / "log").read_text()
    assert "Traceback" not in told
    assert told.count("cannot be written") <= len(ears)
    assert told.count("cannot be written") >= 1


async def test_where_there_is_no_room_at_all_a_kernel_is_refused_with_the_reason(
    home: Home, open_keeper: Open, publish: Any, small_disk: Any
) -> None:
    logs = small_disk(70 * KIB)
    keeper = await open_keeper()
    first, second = publish(), publish()
    ear = await heard(keeper, first, logs / "a", "a")
    with pytest.raises(KernelUnreachable, match="No space left"):
        await Ear(keeper, "b").line.hear(logs / "b", second.info, anew=True)
    first.say(1, b"on")
    await reaches(ear, 2)
    assert read(logs / "a", ear)[0]

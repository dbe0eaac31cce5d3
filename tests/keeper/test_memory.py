"""Memory goes back to the system after a flood."""

from __future__ import annotations

import asyncio
import ctypes

import pytest
import zmq

from app.keeper import memory
from app.keeper.memory import SPARE_BYTES, Memory, anonymous_bytes
from app.keeper.sockets import new_context
from tests.support.processes import eventually

BLOCK = 10_000


class Used:
    """What a process has, as the test wants it; and how often memory was given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 100 * 2**20
        self.waiting = 0  # of that, what messages take that have not been read
        self.trims = 0
        self.looks = 0
        monkeypatch.setattr(memory, "LOOK_SECONDS", 0.005)
        monkeypatch.setattr(memory, "_malloc_trim", lambda: self._trim)

    def __call__(self) -> int:
        self.looks += 1
        return self.bytes

    def _trim(self, pad: int) -> int:
        assert pad == 0
        self.trims += 1
        self.bytes = 100 * 2**20 + self.waiting
        return 1


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Used:
    return Used(monkeypatch)


async def test_memory_is_given_back_once_it_is_quiet_and_then_nothing_runs(used: Used) -> None:
    one = Memory(used)
    used.bytes += SPARE_BYTES + 1
    one.note()
    await eventually(lambda: used.trims == 1)
    looks = used.looks
    await asyncio.sleep(0.05)  # ten times as long as a look takes
    assert (used.trims, used.looks) == (1, looks)
    used.bytes += 2 * SPARE_BYTES
    one.note()
    await eventually(lambda: used.trims == 2)
    one.close()


async def test_a_little_more_memory_is_left_for_the_next_messages(used: Used) -> None:
    one = Memory(used)
    used.bytes += SPARE_BYTES
    one.note()
    await eventually(lambda: used.looks == 2)
    assert used.trims == 0
    one.close()


async def test_memory_is_given_back_while_kernels_go_on_talking(used: Used) -> None:
    one = Memory(used)
    used.bytes += SPARE_BYTES + 1

    def gave_back() -> bool:
        one.note()  # never quiet
        return used.trims == 1

    await eventually(gave_back)
    one.close()


async def test_memory_of_messages_that_waited_in_a_long_flood_is_given_back(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LOOK_SECONDS", 1000)  # the test looks in its place
    one = Memory(used)
    used.waiting = 20 * SPARE_BYTES
    used.bytes += 21 * SPARE_BYTES
    for _ in range(memory.BUSY_LOOKS):
        one.note()
        one._look()
    assert (used.trims, used.bytes) == (1, 100 * 2**20 + used.waiting)
    used.waiting = 0  # it has been read, and the allocator has its memory
    one._look()
    assert (used.trims, used.bytes) == (2, 100 * 2**20)
    one.close()


async def test_what_the_allocator_holds_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.01)
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):  # not glibc: there is nothing to call
        one = Memory()
        one.note()
        one.close()
        return
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    one = Memory()
    blocks = [libc.malloc(BLOCK) for _ in range(8 * SPARE_BYTES // BLOCK)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    most = anonymous_bytes()  # some of it may have been the process's before
    for block in blocks[:-1]:  # the last one lies at the end, so that the rest stays where it is
        libc.free(block)
    assert anonymous_bytes() > most - SPARE_BYTES, "the allocator gives it back by itself"
    one.note()
    await eventually(lambda: anonymous_bytes() < most - 6 * SPARE_BYTES)
    libc.free(blocks[-1])
    one.close()


def test_small_frames_hold_no_more_memory_than_they_need() -> None:
    context = new_context()
    try:
        # A pyzmq whose libzmq does not know the option any more fails here: the keeper would run
        # on, and take twice the memory for messages that wait.
        assert context.get(10) == 0
        assert context.max_sockets == 65535
    finally:
        context.destroy(linger=0)
    assert zmq.zmq_version_info() >= (4, 3)

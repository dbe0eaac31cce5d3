"""Kernels that run as users of their owners' are taken over as such."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.support.isolated import IDS, Owner
from tests.support.replicas import TAKEOVER_SECONDS, IsolatingReplicas

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def replicas(url: str) -> Iterator[IsolatingReplicas]:
    with IsolatingReplicas(url) as replicas:
        yield replicas


async def test_a_kernel_stays_its_owners_with_the_next_replica(
    replicas: IsolatingReplicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    # An owner is the same user, whichever replica starts the kernel.
    async with (
        Owner(first, "ada") as ada,
        Owner(second, "ada") as also,
        Owner(second, "bob") as bob,
    ):
        await asyncio.gather(ada.start(), also.start(), bob.start())
        uids = [await owner.value("os.getuid()") for owner in (ada, also, bob)]
        assert uids[0] == uids[1] != uids[2]
        assert {*uids} <= {*IDS}
        process = await ada.value("os.getpid()")
        secret = await bob.value("os.path.expanduser('~')")
        kernel_id = ada.kernel_id
    await asyncio.to_thread(replicas.end, "first", signal.SIGKILL)
    async with Owner(second, "ada", kernel_id) as ada:
        async with asyncio.timeout(TAKEOVER_SECONDS):
            assert await ada.value("os.getpid()") == process
        # Its next process is launched by the other replica.
        await ada.rest.restart(kernel_id)
        await ada.rest.wait_for_state(kernel_id, "idle")
        assert await ada.value("os.getpid()") != process
        assert await ada.value("os.getuid()") == uids[0]
        assert await ada.attempt(listing=f"os.listdir({secret!r})") == {
            "listing": "PermissionError"
        }
        for kernel in await ada.rest.kernels():
            await ada.rest.delete(kernel["id"])

"""The handover between replicas, as far as it decides by itself; `test_takeover.py` runs it."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from app.managers.handover.store import KernelRecord
from app.managers.processes.isolation.isolation import Isolation
from app.managers.processes.keeper.keepers import Keepers
from app.managers.replicas.handover import SharedHandover
from app.managers.replicas.membership import Taken
from app.managers.replicas.registry import SharedRegistry
from app.managers.replicas.terms import Terms
from app.settings import Settings
from tests.managers.handover.test_registry import record
from tests.support.processes import eventually


class Member(SimpleNamespace):
    async def begin(self) -> None:
        """There is nothing to take yet."""

    def take_no_more(self) -> None:
        """Nothing is taken in here but what the test gives."""


async def test_a_kernel_that_comes_back_is_adopted_when_it_was_left(tmp_path: Path) -> None:
    found: list[str] = []
    registry: Any = SimpleNamespace(
        member=Member(),
        directory=SimpleNamespace(kernels={}),
        fence=None,
        found=lambda taken: found.append(taken.record.id),
    )
    handover = SharedHandover(
        cast(SharedRegistry, registry),
        cast(Keepers, SimpleNamespace()),
        tmp_path,
        Isolation(Settings(_cli_parse_args=False)),
    )
    done: list[str] = []
    goes_on = asyncio.Event()

    async def adopt(taken: KernelRecord) -> None:
        done.append(f"adopted {taken.id}")

    async def rest(kernel_id: str) -> None:
        done.append(f"leaves {kernel_id}")
        await goes_on.wait()
        done.append(f"left {kernel_id}")

    handover.let_go = lambda kernel_id: partial(rest, kernel_id)
    await handover.adopt(adopt)
    try:
        # The others have declared this replica dead, and died themselves: it has all again.
        registry.on_fenced("k1")
        registry.on_fenced("k1")  # its keeper tells the same
        registry.member.on_taken([Taken(2, record("k1")), Taken(2, record("k2"))])
        await eventually(lambda: "adopted k2" in done)
        assert done == ["leaves k1", "adopted k2"]
        assert found == ["k1", "k2"]
        assert handover.adopting == {"k1"}
        goes_on.set()
        await eventually(lambda: not handover.adopting)
        assert done[2:] == ["left k1", "leaves k1", "left k1", "adopted k1"]
    finally:
        await handover.close()


async def test_a_kernel_that_is_gone_has_no_place_when_whoever_forgets_it_is_cancelled(
    tmp_path: Path,
) -> None:
    begun, released, forgotten = asyncio.Event(), list[str](), list[str]()

    async def hang(_kernel_id: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def release(kernel_id: str) -> None:
        released.append(kernel_id)

    registry: Any = SimpleNamespace(
        member=Member(),
        fence=None,
        delete=hang,
        terms=Terms(),
        directory=SimpleNamespace(forget=forgotten.append),
        reservations=SimpleNamespace(release=release),
    )
    handover = SharedHandover(
        cast(SharedRegistry, registry),
        cast(Keepers, SimpleNamespace()),
        tmp_path,
        Isolation(Settings(_cli_parse_args=False)),
    )
    traffic = SimpleNamespace(tracker=SimpleNamespace(), clients=SimpleNamespace())
    kernel: Any = SimpleNamespace(id="k", traffic=traffic)
    forgetting = asyncio.create_task(handover.forget(kernel))
    await begun.wait()
    forgetting.cancel()
    await asyncio.wait({forgetting})
    assert forgetting.cancelled()
    assert released == forgotten == ["k"]

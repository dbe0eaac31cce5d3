"""What one process of the server hands on to the next: the kernels, and how far everybody is."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

from app.managers.errors import KeeperUnavailable
from app.managers.keeping import Keeper
from app.managers.kernel import Kernel
from app.managers.log_files import KEPT, LOCK
from app.managers.registry import Registry
from app.managers.registry_store import KernelRecord
from app.managers.transports import socket_files

__all__ = ["Succession"]

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS: Final = 0.25
"""How often it is noted how far clients have come, and what kernels do. What a client has received
since then it may receive again."""

ADOPTION_SECONDS: Final = 30.0
"""How long the start of the server waits for kernels to be adopted; the rest goes on beside it."""

AT_A_TIME: Final = 32
"""Kernels that are adopted side by side."""


class Succession:
    """Of one server. Make it inside a running event loop, and `close` it there."""

    def __init__(
        self,
        registry: Registry,
        keeper: Keeper | None,
        kernels: Callable[[], Iterable[Kernel]],
        state_dir: Path,
    ) -> None:
        self._registry = registry
        self._state_dir = state_dir
        self._keeper = keeper
        self._kernels = kernels
        self._changes: dict[str, int] = {}
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._late: set[asyncio.Task[None]] = set()
        self._checkpoints = asyncio.get_running_loop().create_task(
            self._checkpoint(), name="checkpoints"
        )

    async def adopt(self, one: Callable[[KernelRecord], Awaitable[None]]) -> None:
        """Have every kernel that was left adopted by ``one``; returns when all are, or most."""
        records = await self._registry.load()
        known = {record.id for record in records}
        await self._end_unknown(known)
        if not self._registry.put_aside:
            await asyncio.to_thread(_remove_leftovers, self._state_dir, known)
        if not records:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = {loop.create_task(self._adopt(one, record)) for record in records}
        _, late = await asyncio.wait(tasks, timeout=ADOPTION_SECONDS)
        self._late = late
        logger.info("%d kernels adopted in %.2f s", len(records) - len(late), loop.time() - began)

    async def _adopt(
        self, one: Callable[[KernelRecord], Awaitable[None]], record: KernelRecord
    ) -> None:
        async with self._room:
            try:
                await one(record)
            except Exception:
                logger.exception(
                    "kernel %s could not be adopted; it is left alone",
                    record.id,
                    extra={"kernel_id": record.id},
                )

    async def _end_unknown(self, known: Collection[str]) -> None:
        """Kill what was started for nobody yet: parked, or just when the server ended.

        Not if the registry was put aside: then those are kernels that somebody wants back.
        """
        if self._keeper is None:
            return
        try:
            kept = await self._keeper.kept()
            for kernel_id in kept.keys() - known:
                if self._registry.put_aside:
                    logger.warning(
                        "kernel %s runs, unknown to this server",
                        kernel_id,
                        extra={"kernel_id": kernel_id},
                    )
                    continue
                if kept[kernel_id].exit_code is None:
                    logger.info(
                        "kernel %s was nobody's, and is killed",
                        kernel_id,
                        extra={"kernel_id": kernel_id},
                    )
                await self._keeper.end(kernel_id)
                self._keeper.drop(kernel_id)
                connection = self._state_dir / "runtime" / f"kernel-{kernel_id}.json"
                files = [
                    connection,
                    self._state_dir / "output" / f"kernel-{kernel_id}.log",
                    *socket_files(_read(connection)),
                ]
                for file in files:
                    file.unlink(missing_ok=True)
        except KeeperUnavailable as error:
            logger.error("it is not known which kernels were left: %s", error)

    async def _checkpoint(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            changes = {}  # of those that are still there
            for kernel in self._kernels():
                if kernel.is_left:  # what is written of it holds
                    continue
                kernel.traffic.note_places()
                changes[kernel.id] = kernel.state.changes
                if self._changes.get(kernel.id) != kernel.state.changes:
                    activity = kernel.traffic.last_activity
                    self._registry.touch(kernel.id, activity, kernel.state.word)
            self._changes = changes

    async def close(self) -> None:
        """Note nothing more."""
        tasks = {self._checkpoints, *self._late}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _read(connection_file: Path) -> dict[str, Any]:
    """What a connection file of ours holds; nothing if it is gone, or was not written whole."""
    try:
        info = json.loads(connection_file.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _remove_leftovers(state_dir: Path, known: Collection[str]) -> None:
    """Remove logs and journals of kernels that are no more: they were dead when a server ended."""
    for directory in (state_dir / "logs" / KEPT, state_dir / "journals"):
        for path in directory.glob("*"):
            if path.stem in known or path.name == LOCK:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

"""A kernel that somebody else has started, with jupyter_client and no server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from tests.support.home import Home


@asynccontextmanager
async def external_kernel(
    home: Home, file: Path, **options: Any
) -> AsyncIterator[AsyncKernelManager]:
    """A python3 kernel with its connection file at ``file``; both are gone afterwards.

    ``options`` are those of jupyter_client's manager.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    manager = AsyncKernelManager(kernel_name="python3", connection_file=str(file), **options)
    await manager.start_kernel(env=home.environment(), cwd=str(home.root_dir))
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)
        manager.context.destroy(linger=0)
        _remove(file)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)

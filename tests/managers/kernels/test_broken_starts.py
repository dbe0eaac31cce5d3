"""Broken kernelspecs cost whoever asks for them an error, and nobody else anything."""

from __future__ import annotations

from tests.support.drill import Servers
from tests.support.home import Home
from tests.support.starts import BROKEN, KEEP, starts, write_specs


async def test_sound_kernels_start_beside_broken_ones_and_no_process_is_left(
    servers: Servers, home: Home
) -> None:
    write_specs(home)
    servers.arguments = KEEP
    done = await starts(servers, sound=24, broken=len(BROKEN) + 1)
    assert done["sound"] == 24

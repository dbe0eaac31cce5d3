"""What the machine says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.machine import network_file_system


@pytest.mark.parametrize(
    ("kind", "told"),
    [("nfs4", "nfs4"), ("fuse.sshfs", "fuse.sshfs"), ("ext4", None), ("fuse.fuseblk", None)],
)
def test_a_network_file_system_is_known(tmp_path: Path, kind: str, told: str | None) -> None:
    device = tmp_path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:997 / /elsewhere rw shared:1 - nfs4 server:/export rw\n"
        f"23 1 {numbers} / /somewhere/with\\040blank rw shared:2 - {kind} server:/x rw\n"
    )
    assert network_file_system(tmp_path, mounts) == told


def test_where_nobody_can_tell_there_is_none(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "missing") is None
    assert network_file_system(tmp_path / "missing") is None

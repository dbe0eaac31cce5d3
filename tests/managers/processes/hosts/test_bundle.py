"""The keeper as a file that any Python runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from app.managers.processes.hosts.bundle import MODULE, bundle


def test_it_is_the_same_each_time_and_runs_by_itself(tmp_path: Path) -> None:
    first = bundle()
    bundle.cache_clear()
    assert bundle() == first
    path = tmp_path / "keeper.zip"
    path.write_bytes(first.data)
    # A state directory that is open to others is refused, by the keeper itself.
    (tmp_path / "state").mkdir(mode=0o755)
    ran = subprocess.run(
        [sys.executable, "-m", MODULE, str(tmp_path / "state")],
        env={"PYTHONPATH": str(path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "chmod 0700" in ran.stdout
    assert ran.stderr == ""

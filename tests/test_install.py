"""``scripts/install`` before it installs anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.server import REPOSITORY


def test_an_environment_that_is_a_link_to_another_is_refused_and_the_other_stays(
    tmp_path: Path,
) -> None:
    clone, other = tmp_path / "clone", tmp_path / "other" / ".venv-test"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts" / "install", clone / "scripts")
    other.mkdir(parents=True)
    (other / "stamp").write_text("another clone's")
    (clone / ".venv-test").symlink_to(other)

    refused = subprocess.run(
        [clone / "scripts" / "install", "test"], capture_output=True, text=True, timeout=60
    )

    assert refused.returncode == 2
    assert refused.stderr == (
        f"kernelkeep: .venv-test is a symbolic link to {other}: remove it, and this makes one\n"
    )
    assert (other / "stamp").read_text() == "another clone's"
    assert {path.name for path in clone.iterdir()} == {"scripts", ".venv-test"}

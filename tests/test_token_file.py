"""The token of a server that was given none."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from app.tokens import make_token


def test_it_is_kept_where_kernels_are(tmp_path: Path) -> None:
    keeping = Settings(on_shutdown="keep", state_dir=tmp_path / "state")
    token = make_token(keeping)
    assert len(token) == 48
    assert make_token(keeping) == token
    file = tmp_path / "state" / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert make_token(Settings(on_shutdown="stop", state_dir=tmp_path / "state")) != token

    file.chmod(0o640)  # somebody may have read it
    another = make_token(keeping)
    assert another != token
    assert make_token(keeping) == another
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short")
    assert len(make_token(keeping)) == 48


WIPING = """
import os, subprocess, sys
from pathlib import Path
from app.tokens import wipe_variable
os.environ["SECRET"] = os.environ["SECRET"] + os.environ.get("MORE", "")
wipe_variable("SECRET")
print(os.environ["SECRET"], "sesame" in Path("/proc/self/environ").read_text())
print(subprocess.check_output(["/bin/sh", "-c", "echo $SECRET $NOT_SECRET"], text=True))
"""


@pytest.mark.parametrize("more", ["", "x" * 200])
@pytest.mark.parametrize("first", [True, False])
def test_a_variable_is_wiped_where_others_can_see_it_and_nowhere_else(
    first: bool, more: str
) -> None:
    variables = {"SECRET": "sesame", "NOT_SECRET": "other", "MORE": more}
    variables["PATH"] = os.environ["PATH"]
    names = sorted(variables, key=lambda name: (name == "SECRET") is not first)
    ran = subprocess.run(
        [sys.executable, "-c", WIPING],
        env={name: variables[name] for name in names},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [f"sesame{more}", "False", f"sesame{more}", "other"]

"""The token of a server that was given none."""

from __future__ import annotations

import stat
from pathlib import Path

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

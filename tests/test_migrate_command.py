"""``kernelkeep migrate``."""

from __future__ import annotations

import pytest

from app.migrate_cli import migrate_command
from tests.support.postgresql import PostgreSQL, tells_password


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exit_info:
        migrate_command([*arguments])
    return exit_info.value.code


def test_it_brings_the_registry_to_this_version_and_tells_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 2
    assert "KERNELKEEP_REGISTRY_URL" in capsys.readouterr().err
    with PostgreSQL() as server:
        monkeypatch.setenv("KERNELKEEP_REGISTRY_URL", server.url())
        monkeypatch.setenv("KERNELKEEP_TOKEN", "a token of some length")
        monkeypatch.setenv("KERNELKEEP_ON_SHUTDOWN", "keep")
        assert run() == 0
        assert "it had 0" in capsys.readouterr().err
        assert run() == 0
        assert "it had" not in capsys.readouterr().err
    assert run() == 1
    told = capsys.readouterr().err
    assert "cannot be used" in told
    assert not tells_password(told)
    assert len(told.splitlines()) == 1

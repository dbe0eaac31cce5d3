"""Options as a test gives them: in a file, or as flags; and with which line they are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.config_file import CONFIG_FILE
from app.settings import Settings, explain

__all__ = ["WriteOptions", "flags", "refusal", "write_options"]

WriteOptions = Callable[..., Path]


@pytest.fixture
def write_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WriteOptions:
    """Writes a file in the working directory, which is one of our own, with no option set."""
    for name in os.environ:
        if name.upper().startswith("KERNELKEEP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = CONFIG_FILE, mode: int = 0o644) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def flags(*arguments: str) -> Settings:
    return Settings(_cli_parse_args=list(arguments))


def refusal(*arguments: str) -> str:
    """The one line with which the options are refused."""
    with pytest.raises((ValidationError, SettingsError)) as caught:
        flags(*arguments)
    assert isinstance(caught.value, ValidationError | SettingsError)
    (line,) = explain(caught.value).splitlines()
    assert line.isprintable()
    return line

"""The configuration file: options in TOML, at its top or in the tables of their groups."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final, NamedTuple, get_args

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsError

from .option_types import meant
from .options import GROUPS

__all__ = ["CONFIG_FILE", "ConfigFile", "UnusableConfigFile"]

CONFIG_FILE: Final = "kernelkeep.toml"
"""The file that is read from the working directory if no other is named."""

MAX_BYTES: Final = 2**20
"""The largest file that is read."""

_TABLES: Final = {group.table: frozenset(group.model_fields) for group in GROUPS if group.table}
_OPTIONS: Final = frozenset(name for group in GROUPS for name in group.model_fields) - {"config"}
"""The options that a file may have: all but ``config``, for it cannot name another file."""


class UnusableConfigFile(SettingsError):
    """The file or an option in it cannot be used; the text is one line that names the culprit."""


class ConfigFile(InitSettingsSource):
    """The source of the options that are in a file: the one named by earlier sources (command line
    and environment), or else `CONFIG_FILE`. A call raises `UnusableConfigFile`."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})  # the file is read only when this is called

    def __call__(self) -> dict[str, Any]:
        """The options of the file by name, with the file's path as ``config``."""
        named = self.current_state.get("config")
        file = _read(CONFIG_FILE if named is None else named, must_exist=named is not None)
        if file is None:
            return {}
        try:
            options = dict(_options(_parse(file.text)))
            for name, value in options.items():
                _check_kind(name, value, self.settings_cls.model_fields[name])
        except ValueError as error:
            raise UnusableConfigFile(f"{file.path}: {error}") from None
        if options.get("token") and file.mode & 0o077 and os.name == "posix":
            raise UnusableConfigFile(
                f"{file.path}: it holds the token and is open to others (mode {file.mode:04o}): "
                f"chmod 0600 {file.path}"
            )
        return {**options, "config": file.path}


class _File(NamedTuple):
    path: Path
    text: bytes
    mode: int


def _read(name: str | Path, *, must_exist: bool) -> _File | None:
    """Read a file that no other user can have changed; None if it is missing and need not exist.

    A user who can write the file can have the server run any code, for the option
    ``authorizer_class`` names a class to import. Raises `UnusableConfigFile`.
    """
    path = Path(name)
    if not must_exist and not os.path.lexists(path):
        return None
    try:
        path = path.expanduser().absolute()
        link = path.lstat()
        with open(path, "rb", opener=_open) as file:
            # The checks are made on the opened file, for another may have its name by now.
            status = os.fstat(file.fileno())
            _check_safe(path, status, {link.st_uid, status.st_uid})
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"{path}: it has more than {MAX_BYTES} bytes")
    except OSError as error:
        problem = f"{path}: {error.strerror}"
    except (ValueError, RuntimeError) as error:  # also for a NUL, or the home of an unknown user
        problem = str(error)
    else:
        return _File(path, text, stat.S_IMODE(status.st_mode))
    raise UnusableConfigFile(f"--config: {problem}" if must_exist else problem)


def _open(path: str, flags: int) -> int:
    """Open a file; with O_NONBLOCK, so that opening a pipe does not wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_safe(path: Path, status: os.stat_result, owners: set[int]) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: it is no file")
    if os.name != "posix":
        return
    if not owners <= {0, os.geteuid()}:
        raise ValueError(f"{path}: it belongs to another user, and is not read")
    if mode & 0o022:
        raise ValueError(f"{path}: others can write it (mode {mode:04o}): chmod go-w {path}")


def _parse(text: bytes) -> dict[str, Any]:
    """Parse the TOML document. Raises `ValueError` with a text that repeats none of its values."""
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_explain(str(error), text.decode().splitlines())) from None


def _explain(problem: str, lines: list[str]) -> str:
    """The error in a document, in one line; it names an option that is given twice.

    For such an option `tomllib` tells only the place.
    """
    if problem.startswith("Cannot overwrite a value"):
        place = re.search(r"\(at line (\d+), ", problem)
        number = int(place[1]) if place else len(lines)  # tomllib says "at end of document"
        if name := re.match(r"\s*([A-Za-z0-9_-]+)\s*=", lines[number - 1]):
            return f"{name[1]}: given twice (line {number})"
    return f"it is no TOML: {problem}"


def _options(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of all tables. Raises `ValueError` for an unknown one, or one given twice."""
    for name, value in document.items():
        if name not in _TABLES:
            if name not in _OPTIONS:
                raise ValueError(f"{_shown(name)}: not known{meant(name, _OPTIONS | set(_TABLES))}")
            yield name, value
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{name}: it is a group of options, so a table: [{name}]")
        for option in value:
            if option not in _TABLES[name]:
                raise ValueError(f"[{name}] {_shown(option)}: {_misplaced(option, name)}")
            if option in document:
                raise ValueError(f"{option}: given twice, at the top and in [{name}]")
        yield from value.items()


def _misplaced(option: str, table: str) -> str:
    if option not in _OPTIONS:
        return f"not known{meant(option, _TABLES[table])}"
    tables = [f"in [{other}]" for other, options in _TABLES.items() if option in options]
    return f"its place is {' or '.join([*tables, 'at the top'])}"


def _shown(name: str) -> str:
    """A name, which may have any characters, in one short line."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else repr(name[:60])


def _check_kind(name: str, value: Any, field: FieldInfo) -> None:
    """Raise `ValueError` for true or false where a number is due: pydantic would accept it."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if isinstance(value, bool) and bool not in (field.annotation, *kinds):
        raise ValueError(f"{name}: true and false are for switches")

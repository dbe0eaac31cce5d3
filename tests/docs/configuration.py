"""docs/configuration.md, made from the options in app/settings.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings

__all__ = ["page"]

_BEGINNING: Final = """\
# Configuration

<!-- Made from app/settings.py by scripts/generate: what is changed here is lost. -->

Every option is a flag of the `kernelkeep` command and a variable of its environment:
`cull_interval` is `--cull-interval 60` and `KERNELKEEP_CULL_INTERVAL=60`. A flag counts more. What
can be on or off is `--open-docs` or `--no-open-docs`, and `true` or `false` in the environment.
Lists are written with commas, or as JSON. A wrong value stops the start with one line that names
the option.

`uvicorn kernelkeep.main:app` (`app.main:app` in a clone) reads the environment only. Options that
Jupyter users know keep their name; [From jupyter_server](from-jupyter-server.md) has the map.
"""

_KINDS: Final[dict[Any, str]] = {
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    str: "text",
    SecretStr: "text",
    Path: "path",
    list[str]: "list",
    list[Path]: "list of paths",
    dict[str, int]: "names with a whole number each",
}
# What depends on the machine, or is too long for a table.
_DEFAULTS: Final = {
    "state_dir": "the user's directory for state, `~/.local/state/kernelkeep` on Linux",
    "kernel_env_allow": "see below",
}


def page() -> str:
    """The page's text."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _BEGINNING
    heading = None
    for group, name in _options():
        if group != heading:
            yield from (*([""] if heading else []), f"## {group}", "")
            yield from ("| Option | Value | Default | |", "|---|---|---|---|")
            heading = group
        field = Settings.model_fields[name]
        cells = (f"`{name}`", _value(field), _default(name, field), field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    patterns = Settings.model_fields["kernel_env_allow"].default
    yield from ("", "## The environment of kernels", "")
    yield from ("The default of `kernel_env_allow`:", "")
    yield from ("```text", *_wrapped(patterns), "```", "")


def _options() -> Iterator[tuple[str, str]]:
    """Each option and the comment that its group of options begins with."""
    group = ""
    for line in inspect.getsource(Settings).splitlines():
        if match := re.fullmatch(r"    # (.+)", line):
            group = match[1]
        elif (match := re.match(r"    (\w+): ", line)) and match[1] in Settings.model_fields:
            yield group, match[1]


def _value(field: FieldInfo) -> str:
    kind: Any = field.annotation
    kinds = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in kinds)
    if NoneType in get_args(kind):
        (kind,) = kinds
    return ", ".join([_KINDS[kind], *_bounds(field)])


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        match bound:
            case Ge(ge):
                yield f"{ge} or more"
            case Gt(gt):
                yield f"more than {gt}"
            case Le(le):
                yield f"{le} or less"
            case MinLen(1):
                yield "not empty"


def _default(name: str, field: FieldInfo) -> str:
    default = field.default
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, list | dict):
        default = ", ".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, float):
        default = f"{default:.10g}"
    return "unset" if default is None else f"`{default}`" if default != "" else "empty"


def _wrapped(words: list[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if len(line) + len(word) > 98:
            yield line
            line = ""
        line += f"{' ' if line else ''}{word}"
    yield line

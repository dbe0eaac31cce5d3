"""docs/configuration.md, made from the options in app/options.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.options import GROUPS, KERNEL_ENVIRONMENT

__all__ = ["page"]

_BEGINNING: Final = """\
# Configuration

<!-- Made from app/options.py by scripts/generate: what is changed here is lost. -->

Every option is a flag of the `kernelkeep` command, a variable of its environment and a key in a
file: `cull_interval` is `--cull-interval 60`, `KERNELKEEP_CULL_INTERVAL=60`, `cull_interval = 60`.
A flag counts more than the environment, and that more than the file. A flag may be given once,
but for lists. What can be on or off is `--open-docs` or `--no-open-docs`, and `true` or `false`
elsewhere. Lists are written with commas, or as JSON, and in a file as TOML, and so are tables, as
`[engines.slurm]` for the table `slurm` of the option `engines`. A wrong value stops the start
(exit code 2) with one line that names the option.

`uvicorn kernelkeep.main:app` (`app.main:app` in a clone) reads the environment and the file.
Options that Jupyter users know keep their name; [From jupyter_server](from-jupyter-server.md) has
the map.

## The file

The file is the one that `--config PATH` or `KERNELKEEP_CONFIG` names, or else `kernelkeep.toml`
in the working directory, if there is one. It is TOML. An option has the same name as everywhere.
It stands at the top, or, where the sections below name a table, in that table:

```toml
default_kernel_name = "python3"
warm_kernels = { python3 = 2 }

[culling]
cull_idle_timeout = 3600
cull_connected = true

[log]
log_format = "json"
```

The file must belong to the user who starts the service, or to root, and nobody else may be able
to write it, the group included: it can name code that is run (`authorizer_class`). With `token`
in it nobody else may be able to read it (0600). The start stops, as it does for a wrong value, if
the file has an option that does not exist, stands in the table of another group or is given
twice, or has a group that is no table, and if a file that is named does not exist. The files API
neither shows nor changes the file.
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
    dict[str, Any]: "limits with a value each",
    dict[str, dict[str, Any]]: "names with a table each, as JSON",
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
    for number, group in enumerate(GROUPS):
        heading = (group.__doc__ or "").rstrip(".")
        yield from (*([""] if number else []), f"## {heading}", "")
        if group.table:
            yield from (f"In a file at the top or in the table `[{group.table}]`.", "")
        yield from ("| Option | Value | Default | |", "|---|---|---|---|")
        for name, field in group.model_fields.items():
            cells = (f"`{name}`", _value(field), _default(name, field), field.description or "")
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield from ("", "## The environment of kernels", "")
    yield from ("The default of `kernel_env_allow`:", "")
    yield from ("```text", *_wrapped(KERNEL_ENVIRONMENT), "```", "")


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

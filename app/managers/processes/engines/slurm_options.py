"""A kernelspec's options for the Slurm jobs of its kernels, and sbatch's arguments for them."""

from __future__ import annotations

import os
import re
import shlex
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec
from msgspec import Meta

from ....keeper.limits import ProcessLimits
from ....limit_options import LIMITS
from ..hosts.options import read_options
from .order import PROGRAM
from .quantities import Value, number

__all__ = ["PROVISIONER", "SlurmOptions", "arguments", "measure", "script", "slurm_options"]

PROVISIONER: Final = "kernelkeep-slurm"
"""The provisioner's name (its entry point in the group ``jupyter_client.kernel_provisioners``)."""

_Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\n]*\Z")]
# Slurm replaces % and \ in names of files.
_Directory = Annotated[str, Meta(max_length=1024, pattern=r"^[/~][^\x00\n%\\]*\Z")]
_Address = Annotated[str, Meta(pattern=r"^\Z|^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}\Z")]
_Name = Annotated[str, Meta(max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]*\Z")]
_Names = Annotated[str, Meta(max_length=1024, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]*\Z")]
# minutes, or [days-]hours[:minutes[:seconds]] and minutes:seconds
_TIME: Final = r"^[0-9]{1,5}(-[0-9]{1,2})?(:[0-9]{1,2}){0,2}\Z"
_Time = Annotated[str, Meta(pattern=_TIME)]
_Gpus = Annotated[str, Meta(max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*:[0-9]{1,4}\Z")]
_Features = Annotated[str, Meta(max_length=1024, pattern=r"^[A-Za-z0-9_\[(][\w.,:&|*()\[\]-]*\Z")]


class SlurmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of ``kernelkeep-slurm`` (``metadata.kernel_provisioner.config``).

    ``shared`` is a directory that this server and the nodes have at the same path, and ``address``
    where jobs reach this server. What is not given, Slurm says.
    """

    shared: _Directory = "~/.local/state/kernelkeep/slurm"
    address: _Address = ""
    python: _Text = "python3"
    directory: _Text = "~"
    root_dir: Annotated[str, Meta(max_length=4096, pattern=r"^\Z|^[/~][^\x00]*\Z")] | None = None
    pending_timeout: Annotated[float, Meta(gt=0, le=30 * 86400)] = 86400.0
    partition: _Names | None = None
    account: _Name | None = None
    qos: _Name | None = None
    time: _Time | None = None
    memory: str | int | None = None
    cpus: Annotated[int, Meta(ge=1, le=65536)] | None = None
    gpus: Annotated[int, Meta(ge=1, le=4096)] | _Gpus | None = None
    constraint: _Features | None = None

    def __post_init__(self) -> None:
        """See to what the types let through. Raises `ValueError`."""
        if self.memory is not None:
            _bytes(self.memory)

    @property
    def engine(self) -> str:
        """As `EngineOptions.engine`: the shared directory, as jobs are known by their files."""
        return os.path.normpath(os.path.expanduser(self.shared))

    def root_there(self, root_dir: Path) -> str:
        """As `EngineOptions.root_there`.

        Nodes that have the ``shared`` directory of the user's home have all of the home.
        """
        if self.root_dir is not None or self.directory != "~":
            return self.root_dir or ""
        home = Path.home()
        names = home, home.resolve()  # the home may be a link, and either may be what is said
        is_shared = any(Path(self.engine).is_relative_to(name) for name in names)
        for name in names:
            if is_shared and root_dir.is_relative_to(name):
                return str(home / root_dir.relative_to(name))
        return ""

    @property
    def patience(self) -> float:
        """As `EngineOptions.patience`: the engine gives up first, as it can say why."""
        return self.pending_timeout + 60.0


def slurm_options(spec: KernelSpec) -> SlurmOptions | None:
    """The options of a kernelspec whose kernels are jobs of Slurm's; None for any other.

    Raises `KernelStartFailed` for options that cannot be.
    """
    return read_options(spec, PROVISIONER, SlurmOptions)


def _bytes(written: str | int) -> int:
    """A size as the limits of owners write it. Raises `ValueError`."""
    try:
        return int(LIMITS["memory"](written))
    except ValueError as error:
        raise ValueError(f"{error} - at `$.memory`") from None


def measure(name: str, value: Value) -> Decimal:
    """A `Measure`: ``time`` in seconds, ``memory`` in bytes, other options as plain numbers."""
    if name == "memory":
        return Decimal(LIMITS["memory"](value))
    return _seconds(str(value)) if name == "time" else number(name, value)


def _seconds(written: str) -> Decimal:
    """A time limit in Slurm's notation (`_TIME`), in seconds. Raises `ValueError`."""
    if not re.fullmatch(_TIME, written):
        raise ValueError("not a time, like 90, 12:00:00 or 2-12")
    days, is_in_days, rest = written.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if is_in_days or len(parts) == 3:  # hours first
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return Decimal(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def arguments(options: SlurmOptions, limits: ProcessLimits) -> list[str]:
    """The arguments of sbatch, such as ``--mem=1024K``, for these options.

    The owner's ``limits`` bound memory and processors.
    """
    words = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "constraint": options.constraint,
    }
    if options.memory is not None:
        memory = min(_bytes(options.memory), limits.memory or 2**62)
        # In units of 1024 bytes, rounded up: without a unit Slurm takes megabytes.
        words["mem"] = f"{-(-memory // 1024)}K"
    if options.cpus is not None:
        most = options.cpus if limits.cpu is None else max(1, int(limits.cpu))
        words["cpus-per-task"] = str(min(options.cpus, most))
    if options.gpus is not None:
        words["gres"] = f"gpu:{options.gpus}"
    return [f"--{name}={value}" for name, value in words.items() if value is not None]


_SCRIPT: Final = """\
#!/bin/sh
TMPDIR=$(mktemp -d "${{TMPDIR:-/tmp}}/kernelkeep-XXXXXX") || exit 1
SLURM_EXPORT_ENV=ALL
export TMPDIR SLURM_EXPORT_ENV
trap : TERM
{python} -c {program}
status=$?
rm -rf "$TMPDIR"
exit $status
"""
"""Slurm tells all processes of a job to end, this one among them, which waits for the others.

The steps of a job would have no environment if they were asked for as the job was (see
``--export``)."""


def script(python: str) -> bytes:
    """The batch script of a job: a constant, but for the interpreter that the operator names.

    It leaves nothing in the node's directory for temporary files, unless it is killed.
    """
    quoted = shlex.quote(python)
    if python.startswith("~/"):
        quoted = '"$HOME"/' + shlex.quote(python[2:])
    return _SCRIPT.format(python=quoted, program=shlex.quote(PROGRAM)).encode()

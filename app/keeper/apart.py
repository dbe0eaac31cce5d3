"""Processes that the keeper starts and that are no kernels: fork servers."""

from __future__ import annotations

import subprocess

from .processes import start_time
from .protocol import Fields

__all__ = ["run"]


def run(fields: Fields) -> Fields:
    """Start a process that has nothing to do with the keeper but for its children.

    The answer has its id and `start_time`. Raises `OSError`.
    """
    process = subprocess.Popen(
        fields["command"],
        env=fields["env"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.returncode = 0  # it is reaped like any orphan
    return {"answer": {"pid": process.pid, "start_time": start_time(process.pid)}}

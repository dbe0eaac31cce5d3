"""The stdin of a job's process: its program, the keeper, and the join document.

Nothing of this is ever in a command, a variable or a label, which others may see. The command of
each job is an interpreter with a constant program, which reads the rest from its stdin.
"""

from __future__ import annotations

import json
from typing import Final

from ..hosts.bundle import MODULE, bundle, program
from . import job

__all__ = ["PROGRAM", "stdin_of"]

PROGRAM: Final = (
    "import sys; read = sys.stdin.buffer; "
    "exec(compile(read.read(int(read.readline() or 0)), 'kernelkeep', 'exec'), "
    "{'__name__': '__main__'})"
)

_SENT: Final = program(job.__file__)


def stdin_of(document: bytes) -> bytes:
    """All bytes that a job reads from its stdin; its keeper joins with this ``document``."""
    brought = bundle()
    order = {"module": MODULE, "size": len(brought.data), "document": document.decode()}
    head = b"%d\n%s%s\n" % (len(_SENT), _SENT, json.dumps(order).encode())
    return head + brought.data

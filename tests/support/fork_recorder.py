"""A preload for fork servers: their kernels write down what they call until they end.

Imported by the kernel's interpreter, so it needs the standard library only. The file to write is
named by the environment variable `RECORD`, in the kernelspec; see `tests.support.fork_order`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from types import CodeType, FrameType

RECORD = "KERNELKEEP_RECORD_CALLS"

_calls: dict[CodeType, str] = {}


def _record() -> None:
    threading.setprofile(_note)
    sys.setprofile(_note)
    atexit.register(_write)


def _note(frame: FrameType, event: str, _: object) -> None:
    if event == "call":
        _calls[frame.f_code] = frame.f_globals.get("__name__", "")


def _write() -> None:
    sys.setprofile(None)
    names = {f"{module}:{code.co_qualname}" for code, module in [*_calls.items()]}
    with open(os.environ[RECORD], "w", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for name in sorted(names))


os.register_at_fork(after_in_child=_record)

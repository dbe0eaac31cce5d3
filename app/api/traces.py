"""Passes the trace of a request on to the kernel that the request starts.

The trace comes in the header ``traceparent`` [W3C Trace Context, level 1]. By convention a process
finds it in the variable ``TRACEPARENT`` of its environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import Depends, Request

__all__ = ["TraceDep", "trace_environment"]

# [Section 3.2.2] A version, a trace id and a parent id that are not zero, and flags. Later versions
# may have more behind a hyphen; ff is no version.
_TRACEPARENT: Final = re.compile(
    r"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?", re.ASCII
)


async def _trace(request: Request) -> dict[str, str]:
    return trace_environment(request.headers.getlist("traceparent"))


def trace_environment(sent: Sequence[str]) -> dict[str, str]:
    """The variable that tells a process its trace, from all ``traceparent`` headers of a request.

    The dict is empty unless there is one such header, and that is valid.
    """
    match = _TRACEPARENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None or (match[1].startswith("00-") and match[2]):
        return {}
    return {"TRACEPARENT": match[1]}


TraceDep = Annotated[dict[str, str], Depends(_trace)]

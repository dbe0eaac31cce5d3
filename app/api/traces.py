"""The trace that a request belongs to, handed on to the kernel that it starts.

W3C Trace Context, level 1: the header ``traceparent``. By convention a process finds it in the
variable ``TRACEPARENT`` of its environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import Depends, Request

__all__ = ["TraceDep", "trace_environment"]

# [Section 3.2.2] A version, a trace id and a parent id that are not zero, and flags. A version
# that we do not know may have more behind a hyphen; ff is none.
_TRACEPARENT: Final = re.compile(
    r"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?", re.ASCII
)


async def _trace(request: Request) -> dict[str, str]:
    return trace_environment(request.headers.getlist("traceparent"))


def trace_environment(sent: Sequence[str]) -> dict[str, str]:
    """The variables that tell a process of a trace, of all the headers that a request has.

    None if they are not one that is valid.
    """
    match = _TRACEPARENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None or (match[1].startswith("00-") and match[2]):
        return {}
    return {"TRACEPARENT": match[1]}


TraceDep = Annotated[dict[str, str], Depends(_trace)]

"""The bodies of requests: the nesting and size of their JSON is bounded before it is parsed.

JSON takes far more memory as objects than as bytes: an empty list has two bytes in JSON, and about
a hundred in memory.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ..managers.errors import InvalidJSON

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "OFF_LOOP_BYTES", "check_nesting", "parse"]

MAX_DEPTH: Final = 64
"""How deep lists and objects may be nested."""

MAX_CONTAINERS: Final = 50_000
"""How many lists and objects a body may have in all."""

OFF_LOOP_BYTES: Final = 2**20
"""A body with more bytes is parsed in a thread."""

# An escaped character (it may be a quotation mark), a quotation mark, or a bracket.
_STRUCTURE: Final = re.compile(rb"\\.|[\"\[\]{}]", re.DOTALL)


def check_nesting(body: bytes) -> None:
    """Raise `InvalidJSON` if a body's lists and objects exceed the bounds; it need not be JSON."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = containers = 0
    in_string = False
    for match in _STRUCTURE.finditer(body):
        found = match[0]
        if found == b'"':
            in_string = not in_string
        elif in_string or len(found) > 1:
            continue
        elif found in b"[{":
            depth += 1
            containers += 1
            if depth > MAX_DEPTH:
                raise InvalidJSON(f"The body is nested deeper than {MAX_DEPTH} levels")
            if containers > MAX_CONTAINERS:
                raise InvalidJSON(f"The body has more than {MAX_CONTAINERS} lists and objects")
        else:
            depth -= 1


def parse(body: bytes) -> Any:
    """The value that a body holds as JSON. Raises `InvalidJSON`."""
    check_nesting(body)
    try:
        return json.loads(body)
    except ValueError:
        raise InvalidJSON("Invalid JSON in body of request") from None

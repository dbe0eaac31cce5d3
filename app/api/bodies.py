"""The bodies of requests: how deep and how wide their JSON may be, found before it is parsed.

What a body holds costs far more as objects than as bytes: a list in JSON has two bytes, and a
hundred in memory.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ..managers.errors import InvalidJSON

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "OFF_LOOP_BYTES", "check_nesting", "parse"]

MAX_DEPTH: Final = 64
"""Lists and objects within each other."""

MAX_CONTAINERS: Final = 50_000
"""Lists and objects in all."""

OFF_LOOP_BYTES: Final = 2**20
"""A body with more bytes is parsed in a thread."""

# An escape, which may be one of a quotation mark; an end or a beginning of a string; brackets.
_STRUCTURE: Final = re.compile(rb"\\.|[\"\[\]{}]", re.DOTALL)


def check_nesting(body: bytes) -> None:
    """Return if the body's lists and objects are within the bounds; it need not be JSON.

    Raises `InvalidJSON`.
    """
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
    """What the body holds. Raises `InvalidJSON`."""
    check_nesting(body)
    try:
        return json.loads(body)
    except ValueError:
        raise InvalidJSON("Invalid JSON in body of request") from None

"""The environment of a kernel's process: chosen by name, never simply inherited.

The server's own environment reaches a kernel by an allow-list only, so that no secret of the server
(its token, cloud credentials) does. What a client asks for is added to that; the kernelspec's own
entries come last and are applied by the provisioner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

from app.managers.errors import InvalidEnvironment

__all__ = ["kernel_environment"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.()-]*", re.ASCII)

OWN_PREFIX: Final = "KERNELKEEP_"
"""Of the server's own options, the token among them; upper and lower case make no difference."""

MAX_ENTRY_BYTES: Final = 128 * 1024 - 16
"""Linux refuses to execute a program with a longer entry (MAX_ARG_STRLEN)."""

MAX_TOTAL_BYTES: Final = 512 * 1024
"""Names and values of one request together; a program's arguments share the same space."""


def kernel_environment(
    server: Mapping[str, str], allowed: Iterable[str], requested: Mapping[str, str]
) -> dict[str, str]:
    """What of ``server`` matches a pattern of ``allowed``, then ``requested``.

    The server's own options are left out whatever is allowed. Raises `InvalidEnvironment` for a
    name or value that no process can be given.
    """
    _check(requested)
    patterns = list(allowed)
    environment = {
        name: value
        for name, value in server.items()
        if not name.upper().startswith(OWN_PREFIX)
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    environment.update(requested)
    return environment


def _check(requested: Mapping[str, str]) -> None:
    total = 0
    for name, value in requested.items():
        shown = f"{name[:40]!r}"
        if not _NAME.fullmatch(name):
            raise InvalidEnvironment(f"env: {shown} is not a name for an environment variable")
        if "\0" in value:
            raise InvalidEnvironment(f"env: the value of {shown} holds a NUL character")
        try:
            size = len(name) + 1 + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidEnvironment(f"env: the value of {shown} is not valid Unicode") from None
        if size > MAX_ENTRY_BYTES:
            raise InvalidEnvironment(f"env: {shown} is larger than {MAX_ENTRY_BYTES} bytes")
        total += size
    if total > MAX_TOTAL_BYTES:
        raise InvalidEnvironment(f"env: all entries are larger than {MAX_TOTAL_BYTES} bytes")

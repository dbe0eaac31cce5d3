"""Makes this process one of another version. Import nothing of ``app`` before."""

from __future__ import annotations

from typing import Any

from app.keeper import protocol

__all__ = ["speak"]

TELLS_HEARD = 4


def speak(version: int) -> None:
    """Speak this version of the protocol, and in a server the one before."""
    protocol.PROTOCOL = version  # type: ignore[misc]
    protocol.SPOKEN = (version, version - 1)  # type: ignore[misc]
    from app.keeper import service

    if version < TELLS_HEARD:
        greet: Any = service.Service._on_hello

        def greet_briefly(self: Any, fields: protocol.Fields) -> Any:
            return greet(self, fields)["kept"]

        service.Service._on_hello = greet_briefly  # type: ignore[method-assign]

"""The bound on a frame's parts and the error for a broken frame, which both framings share."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_PARTS", "FrameError"]

MAX_PARTS: Final = 65536
"""How many parts a client's frame may have. Each part costs memory, however small it is: a frame
that is nothing but a table of offsets would take many times its size."""


class FrameError(ValueError):
    """A WebSocket frame that does not follow its framing; its text says why."""

"""What both WebSocket framings share: a bound, and the error for a frame that cannot be read."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_PARTS", "FrameError"]

MAX_PARTS: Final = 65536
"""Parts of a client's frame. Each costs memory however small it is, so a table of offsets alone
could make a frame many times its size."""


class FrameError(ValueError):
    """A WebSocket frame that does not follow its framing; its text says why."""

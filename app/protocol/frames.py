"""What both WebSocket framings share: the error for a frame that cannot be read."""

from __future__ import annotations

__all__ = ["FrameError"]


class FrameError(ValueError):
    """A WebSocket frame that does not follow its framing; its text says why."""

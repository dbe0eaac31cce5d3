"""The rate limit as a client sees it: output is left out, and notices say so."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..managers.log.message_log import Entry
from ..managers.telemetry.counters import Tally
from ..protocol.compose import make_message
from ..protocol.messages import Message
from .rate_limits import Episode, RateLimiter, RateLimits

__all__ = ["OutputLimit"]


class OutputLimit:
    """Limits the live output of a kernel that one connection is sent.

    Messages before number ``live_from`` are a replay of what this client has missed; they are never
    limited. ``held_back`` counts the messages that are left out.
    """

    def __init__(self, limits: RateLimits, live_from: int, held_back: Tally) -> None:
        self._limiter = RateLimiter(limits)
        self._live_from = live_from
        self._held_back = held_back
        self._last_held: Message | None = None

    def select(self, entries: Iterable[Entry]) -> list[Message]:
        """The messages to send for these entries, notices among them."""
        now = time.monotonic()
        messages: list[Message] = []
        for entry in entries:
            message = entry.message
            if entry.seq < self._live_from or message.channel != "iopub":
                messages.append(message)
            elif _is_idle(message):
                self._add_count(messages, self._limiter.reset())
                messages.append(message)
            else:
                self._limit(messages, entry, now)
        return messages

    def _limit(self, messages: list[Message], entry: Entry, now: float) -> None:
        limiter, message = self._limiter, entry.message
        before = limiter.exceeded
        admitted = limiter.admit(message.msg_type, entry.size, now)
        if admitted:
            if limiter.exceeded is None:
                self._add_count(messages, limiter.end_episode())
            messages.append(message)
            return
        self._held_back.messages += 1
        self._held_back.bytes += entry.size
        # Without mapped content: a limit may be exceeded for as long as the code runs.
        self._last_held = Message("iopub", message.frame) if message.rest else message
        if before is None and limiter.exceeded is not None:
            messages.append(_notice(limiter.notice(limiter.exceeded), message))

    def _add_count(self, messages: list[Message], episode: Episode | None) -> None:
        """Add a notice that counts what was held back, when a limit is no longer exceeded."""
        # The notice is output of the execution whose output was held back last. The message that
        # ends the episode may belong to another one.
        if episode is None or self._last_held is None:
            return
        text = (
            f"kernelkeep: {episode.messages} messages ({episode.bytes} bytes) of output were held "
            "back.\n"
        )
        messages.append(_notice(text, self._last_held))
        self._last_held = None


def _is_idle(message: Message) -> bool:
    # The content is searched and not parsed. A kernel that has this word elsewhere in a status ends
    # an episode early.
    return message.msg_type == "status" and b'"idle"' in bytes(message.part(3))


def _notice(text: str, cause: Message) -> Message:
    """A notice on stderr, as output of the request that has caused the message ``cause``."""
    content = {"name": "stderr", "text": text}
    session = cause.header.session or ""
    return make_message("iopub", "stream", content, session=session, parent=bytes(cause.part(1)))

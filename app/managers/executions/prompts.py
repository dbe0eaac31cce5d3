"""What a kernel asks its users for: the prompts of `input()` that wait for an answer.

A kernel takes whatever answer comes next, whichever prompt that was meant for. Only an answer to a
prompt that is open is passed on, and it closes that prompt: one that comes too late, or a second
time, never becomes the answer to the next prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...protocol.messages import Header, Message
from .execution import Execution

__all__ = ["Prompt", "Prompts"]

MAX_PROMPTS: Final = 64
"""Prompts open at a time, per kernel; beyond, the oldest is closed."""


class Prompt:
    """One ``input_request``.

    ``owner`` is the session whose request asks, ``execution`` that request if it is one; ``seq``
    is the number of the message in the log. ``is_shown`` tells whether the owner has the prompt
    before it, as far as is known.
    """

    __slots__ = ("execution", "is_shown", "message", "owner", "seq")

    def __init__(
        self, message: Message, owner: str, seq: int, execution: Execution | None, *, is_shown: bool
    ) -> None:
        self.message = message
        self.owner = owner
        self.seq = seq
        self.execution = execution
        self.is_shown = is_shown

    @property
    def id(self) -> str:
        """The ``msg_id`` of the message, by which an answer names the prompt."""
        return self.message.header.msg_id

    @property
    def request_id(self) -> str:
        """The ``msg_id`` of the request that asks."""
        return self.message.parent.msg_id


class Prompts:
    """The open prompts of one kernel. A request has one at a time."""

    def __init__(self) -> None:
        self._open: dict[str, Prompt] = {}  # by the request that asks, oldest first

    def __iter__(self) -> Iterator[Prompt]:
        return iter(tuple(self._open.values()))

    def open(self, prompt: Prompt) -> None:
        """The kernel asks; what the same request asked for before is asked no longer."""
        self._open.pop(prompt.request_id, None)
        self._open[prompt.request_id] = prompt
        if len(self._open) > MAX_PROMPTS:
            del self._open[next(iter(self._open))]

    def close(self, request_id: str) -> None:
        """This request asks for nothing: it was answered, or is over."""
        if self._open:
            self._open.pop(request_id, None)

    def clear(self) -> None:
        """The process that asked is gone."""
        self._open.clear()

    def meant_by(self, parent: Header, session: str) -> Prompt | None:
        """The open prompt that an answer with this parent header is for, sent in this session.

        The parent is the prompt itself or, for some clients, the request that asks. Others name
        nothing: they mean the only prompt that there is, of their own session if it has any.
        """
        name = parent.msg_id
        if name:
            found = next((prompt for prompt in self._open.values() if prompt.id == name), None)
            return found or self._open.get(name)
        every = list(self._open.values())
        meant = [prompt for prompt in every if prompt.owner == session] or every
        return meant[0] if len(meant) == 1 else None

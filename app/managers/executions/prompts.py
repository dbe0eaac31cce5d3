"""The open prompts of one kernel: its ``input_request`` messages that wait for an answer.

A kernel takes the next ``input_reply`` for the answer, whichever prompt that was meant for. Two
clients may answer one prompt, or an answer may come when its prompt is over. So only an answer to
an open prompt is passed on, and it closes the prompt: no late or second answer reaches the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...protocol.messages import Header, Message
from .execution import Execution

__all__ = ["Prompt", "Prompts"]

MAX_PROMPTS: Final = 64
"""How many prompts of one kernel may be open at a time; beyond that the oldest is closed."""


class Prompt:
    """One ``input_request``.

    ``owner`` is the session of the request during which the kernel asks; ``execution`` is that
    request, if it is an execution. ``seq`` is the number of the message in the log. ``is_shown``
    tells whether the owner's client is known to show the prompt.
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
        """The ``msg_id`` of the ``input_request``, by which an answer names the prompt."""
        return self.message.header.msg_id

    @property
    def request_id(self) -> str:
        """The ``msg_id`` of the request during which the kernel asks."""
        return self.message.parent.msg_id


class Prompts:
    """The open prompts of one kernel. A request has at most one at a time."""

    def __init__(self) -> None:
        self._open: dict[str, Prompt] = {}  # by request_id, oldest first

    def __iter__(self) -> Iterator[Prompt]:
        return iter(tuple(self._open.values()))

    def open(self, prompt: Prompt) -> None:
        """Open a prompt. An earlier prompt of the same request is closed by that."""
        self._open.pop(prompt.request_id, None)
        self._open[prompt.request_id] = prompt
        if len(self._open) > MAX_PROMPTS:
            del self._open[next(iter(self._open))]

    def close(self, request_id: str) -> None:
        """Close the prompt of a request, if it has one: it was answered, or the request is over."""
        if self._open:
            self._open.pop(request_id, None)

    def clear(self) -> None:
        """Close all prompts: the process that asked is gone."""
        self._open.clear()

    def meant_by(self, parent: Header, session: str) -> Prompt | None:
        """The open prompt that an answer is for; None if that cannot be told, or it is closed.

        ``parent`` is the parent header of the answer, ``session`` the session that sends it. The
        parent is the prompt or, from some clients, the request during which the kernel asks. Others
        name no parent: they mean the only open prompt of their own session or, if that has none,
        of the kernel.
        """
        # An answer with an unknown id is for a prompt that was closed, and never for another one.
        name = parent.msg_id
        if name:
            found = next((prompt for prompt in self._open.values() if prompt.id == name), None)
            return found or self._open.get(name)
        every = list(self._open.values())
        meant = [prompt for prompt in every if prompt.owner == session] or every
        return meant[0] if len(meant) == 1 else None

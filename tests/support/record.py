"""What fake kernels have sent, by a record of their own, beside what clients got.

A message that no kernel has written down was made up by somebody else.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.framing import Json, Message
from tests.support.kernelspecs import Spec

__all__ = ["Got", "Record", "earliest_repeat", "recording"]


def recording(file: Path, *flags: str) -> Spec:
    """A fake kernel that writes down in this file what it sends, as `Record` reads it."""
    return Spec(flags=(*flags, "--record", str(file)))


class Got(NamedTuple):
    """A message that a client got."""

    channel: str
    msg_type: str
    msg_id: str
    parent_id: str
    status: str
    """Of a reply: ``ok``, ``error``, ``aborted``; of a status message the state."""
    when: float
    """By the monotonic clock."""

    @classmethod
    def of(cls, channel: str, header: Json, parent: Json, content: Json) -> Self:
        """Of a message that has just come."""
        status = content.get("status", content.get("execution_state", ""))
        parent_id = parent.get("msg_id", "")
        msg_type, msg_id = header["msg_type"], header["msg_id"]
        return cls(channel, msg_type, msg_id, parent_id, str(status), time.monotonic())

    @classmethod
    def from_message(cls, message: Message) -> Self:
        """Of a message of a WebSocket."""
        return cls.of(message.channel, message.header, message.parent_header, message.content)


class Record:
    """What has been written down so far, in the order of each kernel."""

    def __init__(self, file: Path) -> None:
        self.sent: dict[str, tuple[str, str, str]] = {}
        """By message id: the channel, the type and the parent's id."""
        for line in file.read_text().splitlines():
            channel, msg_type, msg_id, parent_id = line.split()
            assert msg_id not in self.sent, f"the kernel has sent it twice: {line}"
            self.sent[msg_id] = channel, msg_type, parent_id

    def of(self, parent_id: str, channel: str) -> list[str]:
        """The ids of what was sent for a request over a channel, in order."""
        return [
            msg_id
            for msg_id, (on, _, parent) in self.sent.items()
            if (on, parent) == (channel, parent_id)
        ]

    def check_genuine(self, got: Iterable[Got], excused: Collection[str] = ()) -> None:
        """All that has a parent was sent by a kernel, and no reply is ``aborted``.

        ``excused`` are parents whose story somebody else may have ended.
        """
        for one in got:
            if one.parent_id and one.parent_id not in excused:
                assert one.msg_id in self.sent, f"made up: {one}"
                assert one.status != "aborted", one

    def check_whole(self, got: Iterable[Got], parent_id: str, *, replies: bool) -> None:
        """All that was sent for a request has come, and in its order on each channel.

        What came again is left out. Without ``replies`` there are none for this client. The request
        was answered, and so it was run, once.
        """
        had = list(dict.fromkeys((o.channel, o.msg_id) for o in got if o.parent_id == parent_id))
        answers = self.of(parent_id, "shell")
        assert len(answers) == 1, f"{len(answers)} replies of the kernel"
        for channel in ("iopub", "shell") if replies else ("iopub",):
            came = [msg_id for on, msg_id in had if on == channel]
            sent = self.of(parent_id, channel)
            missing = [(each, *self.sent[each]) for each in sent if each not in set(came)][:5]
            assert came == sent, f"{channel}: {len(came)} of {len(sent)}; missing: {missing}"


def earliest_repeat(got: Iterable[Got]) -> float | None:
    """When that of the messages that came again first came which had come longest ago, if any."""
    first: dict[str, float] = {}
    again = []
    for one in got:
        if one.msg_id in first:
            again.append(first[one.msg_id])
        else:
            first[one.msg_id] = one.when
    return min(again, default=None)

"""The outputs of an execution in the form of notebooks [nbformat 4, "Code cell outputs"].

Streams are merged, and updates of displays and clearing are applied, as a notebook would show them.
Outputs are held within a bound: if they do not fit, the head and the tail stay, and the bytes cut
between them are counted. The newest error stays whatever comes after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from ...protocol.messages import Message
from .contents import content_of, text_of
from .shortening import (
    LEAST_ERROR,
    refer,
    shortened_data,
    shortened_error,
    size_of,
)

__all__ = ["INLINE_BYTES", "Cut", "Numbering", "OutputAssembler", "display_id_of"]

INLINE_BYTES: Final = 128 * 1024
"""Data of one media type with more bytes than this is replaced by a URL of that data."""

LEAST_DATA: Final = 200
"""A display or a result is not shortened to fewer bytes than this, but left out."""

MAX_OUTPUTS: Final = 20_000
"""How many outputs are held, however small; half of them from each end."""

CHUNK_BYTES: Final = 65536
"""Texts of a stream are joined up to this size."""

OUTPUT_TYPES: Final = frozenset({"stream", "display_data", "execute_result", "error"})

HEAD, TAIL, KEPT = range(3)
"""Where an output is: in the head, in the tail, or alone (the newest error) between the two."""


class Cut(NamedTuple):
    """What was left out between the head and the tail: the whole outputs, and all bytes."""

    outputs: int
    bytes: int


class Numbering:
    """Tells the number of the output that a message makes or continues, counted from 0."""

    def __init__(self) -> None:
        self.count = 0
        self._stream: str | None = None  # the name of the stream that the last output is
        self._clear = False  # whether the next output clears those before it

    def take(self, msg_type: str, content: dict[str, Any]) -> tuple[bool, int | None]:
        """Whether a message clears all outputs before, and the number of its output, if any."""
        if msg_type == "clear_output":
            if content.get("wait"):
                self._clear = True
                return False, None
            self._reset()
            return True, None
        if msg_type not in OUTPUT_TYPES:  # an update is no output: it does not clear either
            return False, None
        cleared = self._clear
        if cleared:
            self._reset()
        name = _stream_name(content) if msg_type == "stream" else None
        if name is None or name != self._stream:
            self.count += 1
        self._stream = name
        return cleared, self.count - 1

    def part(self) -> None:
        """End a stream here: further text of it is an output of its own."""
        self._stream = None

    def _reset(self) -> None:
        self.count, self._stream, self._clear = 0, None, False


class _Output:
    """An output, or a part of a stream: its fields, or its text in UTF-8."""

    __slots__ = ("bytes", "chunks", "display_id", "fields", "is_short", "number", "where")

    def __init__(self, number: int, fields: dict[str, Any]) -> None:
        self.number = number
        self.fields = fields
        self.chunks: deque[bytearray] = deque()
        self.bytes = 0
        self.where = HEAD
        self.is_short = False  # whether something of its fields was left out
        self.display_id: str | None = None

    def append(self, text: bytes) -> None:
        if self.chunks and len(self.chunks[-1]) < CHUNK_BYTES:
            self.chunks[-1] += text
        else:
            self.chunks.append(bytearray(text))

    @property
    def text(self) -> str:
        return b"".join(self.chunks).decode()


class OutputAssembler:
    """Makes outputs of messages, which are added in the order in which they came.

    At most ``max_bytes`` of text and data are held, and the newest error in any case. Nothing is
    cut while all fits. ``url`` makes the URL of an output's data from its number and a media type.
    """

    def __init__(self, url: Callable[[int, str], str], max_bytes: int) -> None:
        self._url = url
        self._max_bytes = max_bytes
        self._half = max_bytes // 2
        self._numbering = Numbering()
        self._late_from: int | None = None  # the number of the first output that is late
        self._reset()

    def begin_late(self) -> None:
        """Take the messages from now on for late output, which came after the execution's end."""
        self._numbering.part()
        self._late_from = self._numbering.count

    @property
    def late(self) -> int:
        """How many outputs came after the execution's end. They are the last ones."""
        if self._late_from is None:
            return 0
        made = {output.number for output in (*self._head, *self._kept, *self._tail)}
        return sum(number >= self._late_from for number in made)

    def _reset(self) -> None:
        self._head: list[_Output] = []
        self._tail: deque[_Output] = deque()
        self._error: _Output | None = None  # the newest
        self._kept: list[_Output] = []  # the newest error, if it would have been cut
        self._used = [0, 0, 0]  # the bytes in HEAD, TAIL and KEPT
        self._cut_outputs = self._cut_bytes = 0
        self._overflows = False
        self._displays: dict[str, list[_Output]] = {}

    @property
    def cut(self) -> Cut | None:
        """What was left out; None if nothing was."""
        return Cut(self._cut_outputs, self._cut_bytes) if self._cut_bytes else None

    def add(self, message: Message) -> None:
        """Take the next message. Messages that are no output change nothing."""
        msg_type = message.msg_type
        content = content_of(message)
        cleared, number = self._numbering.take(msg_type, content)
        if cleared:
            self._reset()
            self._late_from = None if self._late_from is None else 0
        if msg_type == "update_display_data":
            self._update(content)
        elif number is None:
            return
        elif msg_type == "stream":
            self._add_text(number, _stream_name(content), text_of(content.get("text")).encode())
        else:
            self._add_whole(number, msg_type, content)

    def _add_text(self, number: int, name: str, text: bytes) -> None:
        if len(self._head) >= MAX_OUTPUTS // 2 and self._head[-1].number != number:
            self._overflows = True
        # Once anything has gone to the tail, all that follows does: the order stays.
        if not self._overflows:
            room = max(self._half - self._used[0], 0)
            if len(text) > room:
                room = _boundary(text, room)
            head, text = text[:room], text[room:]
            if head or not text:
                self._append_text(number, name, head)
            if not text:
                return
            self._overflows = True
        self._append_text(number, name, text)
        self._trim()

    def _append_text(self, number: int, name: str, text: bytes) -> None:
        outputs = self._tail if self._overflows else self._head
        if not outputs or outputs[-1].number != number:
            self._append(_Output(number, {"output_type": "stream", "name": name}))
        outputs[-1].append(text)
        self._grow(outputs[-1], len(text))

    def _add_whole(self, number: int, msg_type: str, content: dict[str, Any]) -> None:
        fields = self._fields(number, msg_type, content)
        size = size_of(fields)
        self._overflows = (
            self._overflows
            or self._used[0] + size > self._half
            or len(self._head) >= MAX_OUTPUTS // 2
        )
        output = _Output(number, fields)
        self._append(output)
        self._grow(output, size)
        if msg_type == "error":
            self._error = output
            self._drop_kept()
        output.display_id = display_id_of(content)
        if output.display_id is not None:
            self._displays.setdefault(output.display_id, []).append(output)
        self._trim()

    def _append(self, output: _Output) -> None:
        output.where = TAIL if self._overflows else HEAD
        (self._tail if self._overflows else self._head).append(output)

    def _grow(self, output: _Output, size: int) -> None:
        output.bytes += size
        self._used[output.where] += size

    def _fields(self, number: int, msg_type: str, content: dict[str, Any]) -> dict[str, Any]:
        if msg_type == "error":
            traceback = content.get("traceback")
            lines = traceback if isinstance(traceback, list) else []
            return {
                "output_type": "error",
                "ename": text_of(content.get("ename")),
                "evalue": text_of(content.get("evalue")),
                "traceback": [line for line in lines if isinstance(line, str)],
            }
        fields = {"output_type": msg_type, **self._bundle(number, content)}
        if msg_type == "execute_result":
            fields["execution_count"] = content.get("execution_count")
        return fields

    def _bundle(self, number: int, content: dict[str, Any]) -> dict[str, Any]:
        """Data and metadata, with a URL in place of data larger than `INLINE_BYTES`."""
        data: dict[str, Any] = {**_object(content.get("data"))}
        references: dict[str, int] = {}
        for mime, value in tuple(data.items()):
            if _size(value) > INLINE_BYTES:
                refer(data, references, mime, self._url(number, mime))
        metadata = _object(content.get("metadata"))
        if references:
            metadata = {**metadata, "kernelkeep": {"references": references}}
        return {"data": data, "metadata": metadata}

    def _update(self, content: dict[str, Any]) -> None:
        """Replace the data of every output with the display id of this update."""
        # Outputs that were cut whole are not among these (`_drop`): they stay cut.
        for output in self._displays.get(display_id_of(content) or "", ()):
            output.fields |= self._bundle(output.number, content)
            output.is_short = False
            self._grow(output, size_of(output.fields) - output.bytes)
        self._trim()

    @property
    def _excess(self) -> int:
        return sum(self._used) - self._max_bytes

    def _trim(self) -> None:
        """Cut from the front of the tail until all fits, then from the end of the head.

        An output is shortened if that is enough, and otherwise left out.
        """
        # The loops end: each `_cut` shortens an output until all fits, or takes the output out.
        tail = self._tail
        while len(tail) > MAX_OUTPUTS // 2:
            self._cut(tail[0], tail[0].bytes, tail.popleft)
        while tail and self._excess > 0:
            self._cut(tail[0], self._excess, tail.popleft)
        while self._head and self._used[HEAD] > self._max_bytes:  # updates have made it larger
            self._overflows = True
            self._cut(self._head[-1], self._used[HEAD], self._head.pop)

    def _cut(self, output: _Output, excess: int, remove: Callable[[], _Output]) -> None:
        if output.chunks:
            self._cut_text(output, excess)
            if not output.chunks:
                self._drop(output, remove)
            return
        room = output.bytes - excess
        if output is self._error:
            self._shorten(output, max(room, LEAST_ERROR))
            if output.bytes > room:
                self._keep(remove())
            return
        if room >= LEAST_DATA:
            self._shorten(output, room)
        if output.bytes > room:
            self._drop(output, remove)

    def _cut_text(self, output: _Output, excess: int) -> None:
        """Cut ``excess`` bytes from the front of a stream's text, at the start of a character."""
        before = output.bytes
        chunks = output.chunks
        while chunks and len(chunks[0]) <= excess:
            excess -= len(chunks[0])
            self._grow(output, -len(chunks.popleft()))
        if chunks:
            start = _boundary(chunks[0], excess, forward=True)
            del chunks[0][:start]
            self._grow(output, -start)
            if not chunks[0]:
                chunks.popleft()
        self._cut_bytes += before - output.bytes

    def _shorten(self, output: _Output, room: int) -> None:
        """Shorten an output other than a stream to about ``room`` bytes, if that can be.

        An output that was shortened before is cut at least to half. So an output that is shortened
        again and again, for a few bytes each time, costs no more than a few times its size.
        """
        if output.is_short:
            room = min(room, max(output.bytes // 2, LEAST_DATA))
        if output.fields["output_type"] == "error":
            fields = shortened_error(output.fields, room)
        else:
            fields = shortened_data(
                output.fields, room, lambda mime: self._url(output.number, mime)
            )
        given = output.bytes - size_of(fields)
        if given > 0:
            output.fields, output.is_short = fields, True
            self._grow(output, -given)
            self._cut_bytes += given

    def _keep(self, error: _Output) -> None:
        """Set the newest error apart, so that it is not cut with what lies around it."""
        size = error.bytes
        self._grow(error, -size)
        error.where = KEPT
        self._grow(error, size)
        self._kept = [error]

    def _drop_kept(self) -> None:
        """Drop the error that was set apart: there is a newer one."""
        for error in [*self._kept]:
            self._drop(error, self._kept.pop)

    def _drop(self, output: _Output, remove: Callable[[], _Output]) -> None:
        remove()
        self._cut_bytes += output.bytes
        self._grow(output, -output.bytes)
        if not (self._head and self._head[-1].number == output.number):
            self._cut_outputs += 1
        if output.display_id is not None:
            self._displays[output.display_id].remove(output)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs so far; where outputs were cut, a text on stderr tells how many bytes."""
        # An error that is too short to be shortened may be set apart although nothing was cut.
        cut = self.cut
        if cut is None:
            return _render([*self._head, *self._kept, *self._tail])
        text = f"kernelkeep: {cut.bytes} bytes of output are left out here (see max_bytes)\n"
        notice = {"output_type": "stream", "name": "stderr", "text": text}
        return [*_render(self._head), notice, *_render([*self._kept, *self._tail])]


def _render(outputs: Iterable[_Output]) -> list[dict[str, Any]]:
    rendered: list[dict[str, Any]] = []
    last = None
    for output in outputs:
        if not output.chunks:
            rendered.append(output.fields)
        elif output.number == last:  # a stream that goes on in the tail
            rendered[-1]["text"] += output.text
        else:
            rendered.append({**output.fields, "text": output.text})
        last = output.number
    return rendered


def _size(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else size_of(value)


def _stream_name(content: dict[str, Any]) -> str:
    return "stderr" if content.get("name") == "stderr" else "stdout"


def display_id_of(content: dict[str, Any]) -> str | None:
    """The display id of an output, or of an update of one."""
    display_id = _object(content.get("transient")).get("display_id")
    return display_id if isinstance(display_id, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _boundary(text: bytes | bytearray, position: int, *, forward: bool = False) -> int:
    """The nearest start of a UTF-8 character, at ``position`` or before (``forward``: after) it."""
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
        position += 1 if forward else -1
    return position

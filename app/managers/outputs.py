"""The outputs of an execution in the form of notebooks [nbformat 4, "Code cell outputs"].

Streams are merged, updates of displays and clearing applied, as a notebook would show it. What is
kept is bounded: the head and the tail of it stay, and what was cut between them is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from app.managers.contents import content_of, text_of
from app.protocol.messages import Message

__all__ = ["INLINE_BYTES", "Cut", "Numbering", "OutputAssembler", "display_id_of"]

INLINE_BYTES: Final = 128 * 1024
"""Data of one media type that is larger than this is replaced by the URL where it is."""

OUTPUT_OVERHEAD: Final = 100
"""What an output counts for beside its text and data."""

MAX_OUTPUTS: Final = 20_000
"""Outputs that are kept, however small; half of them from each end."""

CHUNK_BYTES: Final = 65536
"""Texts of a stream are joined up to this size."""

OUTPUT_TYPES: Final = frozenset({"stream", "display_data", "execute_result", "error"})

_encode = msgspec.json.Encoder().encode


class Cut(NamedTuple):
    """What was left out between the head and the tail: whole outputs, and bytes of all."""

    outputs: int
    bytes: int


class Numbering:
    """Which output a message makes or goes on with; they are numbered from 0."""

    def __init__(self) -> None:
        self.count = 0
        self._stream: str | None = None  # that the last output is
        self._clear = False  # at the next output

    def take(self, msg_type: str, content: dict[str, Any]) -> tuple[bool, int | None]:
        """Whether everything before is cleared, and the number of the output, if it is one."""
        if msg_type == "clear_output":
            if content.get("wait"):
                self._clear = True
                return False, None
            self._reset()
            return True, None
        if msg_type not in OUTPUT_TYPES:
            return False, None
        cleared = self._clear
        if cleared:
            self._reset()
        name = _stream_name(content) if msg_type == "stream" else None
        if name is None or name != self._stream:
            self.count += 1
        self._stream = name
        return cleared, self.count - 1

    def _reset(self) -> None:
        self.count, self._stream, self._clear = 0, None, False


class _Output:
    """An output, or a part of a stream: its fields, or its text in UTF-8."""

    __slots__ = ("bytes", "chunks", "display_id", "fields", "in_head", "number")

    def __init__(self, number: int, fields: dict[str, Any]) -> None:
        self.number = number
        self.fields = fields
        self.chunks: deque[bytearray] = deque()
        self.bytes = 0
        self.in_head = True
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
    """Makes outputs of messages, in the order in which they came.

    At most about ``max_bytes`` of text and data are kept. ``url`` makes the address of the data of
    an output, by its number and the media type.
    """

    def __init__(self, url: Callable[[int, str], str], max_bytes: int) -> None:
        self._url = url
        self._half = max_bytes // 2
        self._numbering = Numbering()
        self._reset()

    def _reset(self) -> None:
        self._head: list[_Output] = []
        self._tail: deque[_Output] = deque()
        self._used = [0, 0]  # by the head, by the tail
        self._cut_outputs = self._cut_bytes = 0
        self._overflows = False
        self._displays: dict[str, list[_Output]] = {}

    @property
    def cut(self) -> Cut | None:
        """What was left out, if anything."""
        return Cut(self._cut_outputs, self._cut_bytes) if self._cut_bytes else None

    def add(self, message: Message) -> None:
        """Take the next message; types that are no output change nothing."""
        msg_type = message.msg_type
        content = content_of(message)
        cleared, number = self._numbering.take(msg_type, content)
        if cleared:
            self._reset()
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
        size = len(_encode(fields)) + OUTPUT_OVERHEAD
        self._overflows = (
            self._overflows
            or self._used[0] + size > self._half
            or len(self._head) >= MAX_OUTPUTS // 2
        )
        output = _Output(number, fields)
        self._append(output)
        self._grow(output, size)
        output.display_id = display_id_of(content)
        if output.display_id is not None:
            self._displays.setdefault(output.display_id, []).append(output)
        self._trim()

    def _append(self, output: _Output) -> None:
        output.in_head = not self._overflows
        (self._head if output.in_head else self._tail).append(output)

    def _grow(self, output: _Output, size: int) -> None:
        output.bytes += size
        self._used[0 if output.in_head else 1] += size

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
        """Data and metadata, with an address in the place of what is too large."""
        data, references = {}, {}
        for mime, value in _object(content.get("data")).items():
            size = _size(value)
            data[mime] = value if size <= INLINE_BYTES else self._url(number, mime)
            if size > INLINE_BYTES:
                references[mime] = size
        metadata = _object(content.get("metadata"))
        if references:
            metadata = {**metadata, "kernelkeep": {"references": references}}
        return {"data": data, "metadata": metadata}

    def _update(self, content: dict[str, Any]) -> None:
        """Show something else in every output that has this display id."""
        for output in self._displays.get(display_id_of(content) or "", ()):
            output.fields |= self._bundle(output.number, content)
            self._grow(output, len(_encode(output.fields)) + OUTPUT_OVERHEAD - output.bytes)
        self._trim()

    def _trim(self) -> None:
        """Cut from the front of the tail until it is within its half, then from the head's end."""
        used, tail = self._used, self._tail
        while len(tail) > MAX_OUTPUTS // 2:
            self._shorten(tail[0], tail[0].bytes, tail.popleft)
        while tail and used[1] > self._half:
            self._shorten(tail[0], used[1] - self._half, tail.popleft)
        while self._head and used[0] > 2 * self._half:  # by updates
            self._overflows = True
            self._shorten(self._head[-1], used[0], self._head.pop)

    def _shorten(self, output: _Output, excess: int, remove: Callable[[], _Output]) -> None:
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
        if not chunks:
            self._grow(output, -output.bytes)
            self._remove(output, remove)
        self._cut_bytes += before - output.bytes

    def _remove(self, output: _Output, remove: Callable[[], _Output]) -> None:
        remove()
        if not (self._head and self._head[-1].number == output.number):
            self._cut_outputs += 1
        if output.display_id is not None:
            self._displays[output.display_id].remove(output)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs so far; a notice on stderr stands where something was cut."""
        cut = self.cut
        if cut is None:
            return _render([*self._head, *self._tail])
        text = f"kernelkeep: {cut.bytes} bytes of output are left out here (see max_bytes)\n"
        notice = {"output_type": "stream", "name": "stderr", "text": text}
        return [*_render(self._head), notice, *_render(self._tail)]


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
    return len(value.encode()) if isinstance(value, str) else len(_encode(value))


def _stream_name(content: dict[str, Any]) -> str:
    return "stderr" if content.get("name") == "stderr" else "stdout"


def display_id_of(content: dict[str, Any]) -> str | None:
    """The display id of an output, or of an update of one."""
    display_id = _object(content.get("transient")).get("display_id")
    return display_id if isinstance(display_id, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _boundary(text: bytes | bytearray, position: int, *, forward: bool = False) -> int:
    """The nearest start of a character, at ``position`` or before (behind) it."""
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
        position += 1 if forward else -1
    return position

"""How a line of the log looks: as text, or as a JSON object.

Neither lets a control character through, so nothing that a client or a kernel sends can start a
line of its own or give orders to a terminal.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["SUBJECTS", "JSONFormatter", "TextFormatter"]

SUBJECTS: Final = ("request_id", "kernel_id", "execution_id")
"""Attributes of a record that tell what it is about. They come from the ``extra`` of the call, or
from the request on whose behalf something is logged."""

# C0 but tab and line feed, DEL, C1, what Unicode takes for the end of a line, halves of pairs.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

MAX_TEXT: Final = 16_384
"""Characters of a message, or of a traceback; of what is longer the middle is left out."""

_ACCESS: Final = ("client", "method", "path", "http_version", "status")
"""What uvicorn's access log has as its arguments."""


class TextFormatter(logging.Formatter):
    """One line a record; what has more lines (a traceback) goes on indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        text = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        text = _shortened(text)
        if record.exc_text:
            text = f"{text.rstrip()}\n{_shortened(record.exc_text)}"
        if record.stack_info:
            text = f"{text.rstrip()}\n{record.stack_info}"
        time = self.formatTime(record)
        line = f"{time} {record.levelname:<7} {record.name}: {text}".rstrip("\n")
        if line.isprintable():  # nearly every line; what it can have to be replaced is not
            return line
        return _CONTROL.sub(_escape, line).replace("\n", "\n    ")


def _shortened(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}... ({len(text) - 2 * half} left out) ...{text[-half:]}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class JSONFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and what else is known.

    That is ``request_id``, ``kernel_id``, ``execution_id``, ``exception``, and of the access log
    ``client``, ``method``, ``path`` and ``status``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; all of it is printable ASCII."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shortened(record.getMessage().rstrip("\n")),
        }
        for name in SUBJECTS:
            if subject := getattr(record, name, None):
                entry[name] = subject
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            entry |= dict(zip(_ACCESS, record.args, strict=False))
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            entry["exception"] = _shortened(record.exc_text)
        # Of the control characters, json escapes all but this one.
        return json.dumps(entry, default=str).replace("\x7f", "\\u007f")

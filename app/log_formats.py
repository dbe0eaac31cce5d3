"""The formats of a line in the server's log: text, or a JSON object.

Neither lets a control character through. So a text that a client or a kernel has sent cannot begin
a line of its own, or control a terminal.
"""

from __future__ import annotations

import json
import logging
import re
import time
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["SUBJECTS", "JSONFormatter", "TextFormatter", "about"]

SUBJECTS: Final = ("request_id", "kernel_id", "execution_id")
"""Attributes of a log record that tell what it is about, by `about` or by the present request."""

# C0 without tab and line feed, DEL, C1, Unicode's other ends of lines, and surrogates.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

MAX_TEXT: Final = 16_384
"""Characters of a message or a traceback that are logged; a longer one loses its middle."""

_ACCESS: Final = ("client", "method", "path", "http_version", "status")
"""The arguments of the records of uvicorn's access log."""


def about(logger: logging.Logger, **subject: str) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose records have these attributes, each of which is one of `SUBJECTS`."""
    return logging.LoggerAdapter(logger, subject)


class TextFormatter(logging.Formatter):
    """One line for each record; further lines of it (a traceback) are indented."""

    _second = (-1, "")  # the last one that was written out, with its text

    def formatTime(  # noqa: N802 (the name is logging's)
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """The time in logging's default form; the text of a second is made once for all records."""
        if datefmt is not None:
            return super().formatTime(record, datefmt)
        second, text = self._second
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime(self.default_time_format, time.localtime(second))
            self._second = second, text
        return f"{text},{int(record.msecs):03d}"

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
        moment = self.formatTime(record)
        line = f"{moment} {record.levelname:<7} {record.name}: {text}".rstrip("\n")
        if line.isprintable():  # nearly every line is; no character to replace is printable
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
    """One JSON object for each record: ``time``, ``level``, ``logger``, ``message``, and others.

    The others are ``request_id``, ``kernel_id``, ``execution_id`` and ``exception``, each if it is
    known, and in the access log ``client``, ``method``, ``path``, ``http_version`` and ``status``.
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
        # json escapes every control character but DEL.
        return json.dumps(entry, default=str).replace("\x7f", "\\u007f")

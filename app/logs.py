"""Logging: the configuration of the server's log, and the filter that keeps tokens out of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from .callers import caller
from .log_formats import SUBJECTS, JSONFormatter, TextFormatter
from .managers.owners.credentials import MARK
from .protocol.subprotocols import TOKEN

__all__ = ["SHORT", "hide_tokens", "logging_config"]

SHORT: Final = 16
"""A token with fewer characters can be guessed, and may be a part of other words."""

_PROBES: Final = ("/livez", "/readyz")

# A token may have a quotation mark, so the pattern does not end at one: it hides too much rather
# than too little.
_TOKEN: Final = re.compile(r"([?&;\s\"']|^)(token=)[^&\s]+", re.IGNORECASE)
_CREDENTIALS: Final = re.compile(r"(?:token|bearer)\s+\S.*", re.IGNORECASE)
# Of a token of the list, the part that is shown everywhere stays readable (`SHOWN_LENGTH`).
_LISTED: Final = re.compile(rf"({MARK}[0-9a-f]{{8}})[0-9a-f]{{8,}}")
_OFFERED: Final = re.compile(rf"({re.escape(TOKEN)}\.)[^\s,\"']+")
_LOGGERS: Final = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi", "uvicorn", __package__, None)


_formatter: Final = logging.Formatter()

_PLAIN: Final = frozenset({str, int, float, type(None)})
"""The types of arguments whose text is not anybody's code."""

MAX_ARGUMENT: Final = 1000
"""Characters of one value (a path, a name) in a line; a longer one is cut, and the rest counted."""


class TokenFilter(logging.Filter):
    """Hides ``secret``, ``token=…``, ``Authorization`` headers and `TOKEN` in a log record.

    It also adds the attributes of `SUBJECTS` that are known to the record.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self.secret = secret
        # A short secret may be a part of other words, and is hidden only as a word by itself.
        bounds = ("", "") if len(secret) >= SHORT else (r"(?<![\w'])", r"(?!\w)")
        self._pattern = re.compile(re.escape(secret).join(bounds))

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record if that is needed; returns True."""
        # Most records pass this filter on their logger, and again on their handler.
        hidden: tuple[str, ...] = record.__dict__.get("hidden", ())
        if self.secret in hidden:
            return True
        # The record is changed in place, for all handlers and loggers behind this one. A record is
        # made for one call, and seen by one thread.
        record.hidden = (*hidden, self.secret)
        if record.args and not self._is_plain(record.args):
            if isinstance(record.args, tuple):
                record.args = tuple(cut(self._hide_argument(arg)) for arg in record.args)
            else:
                hide = self._hide_argument
                record.args = {name: cut(hide(arg)) for name, arg in record.args.items()}
        if isinstance(record.msg, str):
            record.msg = self._hide(record.msg)
        if record.exc_info and not record.exc_text:
            record.exc_text = _formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._hide(record.exc_text)
        self._name_subjects(record)
        return True

    def _is_plain(self, args: tuple[object, ...] | Mapping[str, object]) -> bool:
        """Whether no argument needs to be rewritten, as in nearly every record."""
        if not isinstance(args, tuple) or not _PLAIN.issuperset(map(type, args)):
            return False
        text = " ".join([arg for arg in args if type(arg) is str])
        if len(text) > MAX_ARGUMENT or MARK in text or (self.secret and self.secret in text):
            return False
        text = text.lower()
        return "token" not in text and "bearer" not in text

    def _name_subjects(self, record: logging.LogRecord) -> None:
        """Add the subjects that the present caller has, and that were not given to `about`."""
        found = caller()
        for name in SUBJECTS:
            known: str | None = getattr(record, name, None) or getattr(found, name, None)
            if known is not None:
                setattr(record, name, cut(self._hide(known)))

    def _hide_argument(self, argument: Any) -> Any:
        if argument is None or isinstance(argument, int | float):
            return argument
        if not isinstance(argument, str):  # at the level trace, uvicorn logs whole ASGI scopes
            try:
                text = str(argument)
            except Exception:  # the object may be another package's: its fault stops no logging
                return f"[{type(argument).__name__}]"
            hidden = self._hide(text)
            return argument if hidden == text else hidden
        # At the level debug, websockets logs each header as a name and a value.
        if argument[:1] in "tTbB" and _CREDENTIALS.fullmatch(argument):
            return "[hidden]"
        return self._hide(argument)

    def _hide(self, text: str) -> str:
        if self.secret and self.secret in text:
            text = self._pattern.sub("[hidden]", text)
        if MARK in text:
            text = _LISTED.sub(r"\1[hidden]", text)
        if TOKEN in text:
            text = _OFFERED.sub(r"\1[hidden]", text)
        if "=" not in text or "token=" not in text.lower():
            return text
        return _TOKEN.sub(r"\1\2[hidden]", text)


class ProbeFilter(logging.Filter):
    """Keeps probes that got 200 out of the access log, which they would fill."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let a record of uvicorn's access log through."""
        match record.args:
            case (_, "GET", str(path), _, 200):
                return not path.endswith(_PROBES)
        return True


def cut(argument: Any) -> Any:
    """An argument of a record; a text is cut to `MAX_ARGUMENT` characters."""
    if not isinstance(argument, str) or len(argument) <= MAX_ARGUMENT:
        return argument
    return f"{argument[:MAX_ARGUMENT]}... ({len(argument) - MAX_ARGUMENT} more)"


def hide_tokens(secret: str) -> None:
    """Make every logger that sees requests hide tokens, however logging was configured.

    The handlers of those loggers get the filter, too, for records of the loggers below one do not
    pass its filters.
    """
    places: list[logging.Filterer | None] = [logging.lastResort]
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        places += (logger, *logger.handlers)
    for place in places:
        if place is not None and not any(
            isinstance(known, TokenFilter) and known.secret == secret for known in place.filters
        ):
            place.addFilter(TokenFilter(secret))


def logging_config(level: str, log_format: Literal["text", "json"] = "text") -> dict[str, Any]:
    """A configuration for `logging.config.dictConfig`: one line for each record, on stderr."""
    formatter = TextFormatter if log_format == "text" else JSONFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"probes": {"()": ProbeFilter}},
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            # All records go to the root's handler, whatever was configured before.
            __package__: {"level": level.upper(), "propagate": True},
            "uvicorn": {"propagate": True},
            "uvicorn.error": {
                "level": level.upper() if level != "info" else "WARNING",
                "propagate": True,
            },
            "uvicorn.access": {"level": level.upper(), "propagate": True, "filters": ["probes"]},
        },
    }

"""Logging: where it goes, how it looks, and that no token is ever in it."""

from __future__ import annotations

import logging
import re
from typing import Any, Final, Literal

from .callers import caller
from .log_formats import SUBJECTS, JSONFormatter, TextFormatter

__all__ = ["SHORT", "hide_tokens", "logging_config"]

SHORT: Final = 16
"""Characters below which a token can be guessed."""

_PROBES: Final = ("/livez", "/readyz")

# Rather a quotation mark too many is hidden than half a token shown.
_TOKEN: Final = re.compile(r"([?&;\s\"']|^)(token=)[^&\s]+", re.IGNORECASE)
_CREDENTIALS: Final = re.compile(r"(?:token|bearer)\s+\S.*", re.IGNORECASE)
_LOGGERS: Final = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi", "uvicorn", __package__, None)


_formatter: Final = logging.Formatter()

MAX_ARGUMENT: Final = 1000
"""Characters of one value (a path, a name) in a line; what is cut off is counted."""


class TokenFilter(logging.Filter):
    """Blanks ``secret``, ``token=…`` and ``Authorization`` headers in a record's text.

    It notes what a record belongs to, too: see `SUBJECTS`.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self.secret = secret
        # A short one may be a part of any word. Where it is one, nobody has written a token.
        bounds = ("", "") if len(secret) >= SHORT else (r"(?<![\w'])", r"(?!\w)")
        self._pattern = re.compile(re.escape(secret).join(bounds))

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, rewritten if it needs to be."""
        # Once is enough: most records pass this on their logger, and again on their handler.
        hidden: tuple[str, ...] = getattr(record, "hidden", ())
        if self.secret in hidden:
            return True
        record.hidden = (*hidden, self.secret)
        if isinstance(record.args, tuple):
            record.args = tuple(cut(self._hide_argument(arg)) for arg in record.args)
        elif record.args:
            record.args = {name: cut(self._hide_argument(arg)) for name, arg in record.args.items()}
        if isinstance(record.msg, str):
            record.msg = self._hide(record.msg)
        if record.exc_info and not record.exc_text:
            record.exc_text = _formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._hide(record.exc_text)
        self._name_subjects(record)
        return True

    def _name_subjects(self, record: logging.LogRecord) -> None:
        """Note what whoever logged has not said (``extra``), but the present request knows."""
        found = caller()
        for name in SUBJECTS:
            known: str | None = getattr(record, name, None) or getattr(found, name, None)
            if known is not None:
                setattr(record, name, cut(self._hide(known)))

    def _hide_argument(self, argument: Any) -> Any:
        if argument is None or isinstance(argument, int | float):
            return argument
        if not isinstance(argument, str):  # at its level trace, uvicorn logs whole ASGI scopes
            text = str(argument)
            hidden = self._hide(text)
            return argument if hidden == text else hidden
        # At the level debug, websockets logs each header as a name and a value.
        if argument[:1] in "tTbB" and _CREDENTIALS.fullmatch(argument):
            return "[hidden]"
        return self._hide(argument)

    def _hide(self, text: str) -> str:
        if self.secret and self.secret in text:
            text = self._pattern.sub("[hidden]", text)
        if "=" not in text or "token=" not in text.lower():
            return text
        return _TOKEN.sub(r"\1\2[hidden]", text)


class ProbeFilter(logging.Filter):
    """Keeps probes that are answered with yes out of the access log: there is no end of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let a record of uvicorn's access log through."""
        match record.args:
            case (_, "GET", str(path), _, 200):
                return not path.endswith(_PROBES)
        return True


def cut(argument: Any) -> Any:
    """An argument of a record, if it is a text, without what is too long of it."""
    if not isinstance(argument, str) or len(argument) <= MAX_ARGUMENT:
        return argument
    return f"{argument[:MAX_ARGUMENT]}... ({len(argument) - MAX_ARGUMENT} more)"


def hide_tokens(secret: str) -> None:
    """Make every logger that sees requests hide tokens, whoever configured it.

    Their handlers too: a logger's filters are not asked for what comes from those below it.
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
    """A configuration for `logging.config.dictConfig`: one line a record, on stderr."""
    formatter = TextFormatter if log_format == "text" else JSONFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"probes": {"()": ProbeFilter}},
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            # Everything goes to the root's handler, whatever was configured before.
            __package__: {"level": level.upper(), "propagate": True},
            "uvicorn": {"propagate": True},
            "uvicorn.error": {
                "level": level.upper() if level != "info" else "WARNING",
                "propagate": True,
            },
            "uvicorn.access": {"level": level.upper(), "propagate": True, "filters": ["probes"]},
        },
    }

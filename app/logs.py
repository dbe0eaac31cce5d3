"""Logging: where it goes, how it looks, and that no token is ever in it."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

__all__ = ["hide_tokens", "logging_config"]

_TOKEN: Final = re.compile(r"([?&;\s\"']|^)(token=)[^&\s\"';#]+", re.IGNORECASE)
_LOGGERS: Final = ("uvicorn.access", "uvicorn.error", "uvicorn", "app")


class TokenFilter(logging.Filter):
    """Blanks ``token=…`` wherever it stands in a record's text."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, rewritten if it needs to be."""
        if record.args:
            args = record.args if isinstance(record.args, tuple) else (record.args,)
            if any(isinstance(arg, str) and "token=" in arg.lower() for arg in args):
                record.args = tuple(_hide(arg) if isinstance(arg, str) else arg for arg in args)
        if isinstance(record.msg, str):
            record.msg = _hide(record.msg)
        return True


def _hide(text: str) -> str:
    return _TOKEN.sub(r"\1\2[hidden]", text) if "token=" in text.lower() else text


def hide_tokens() -> None:
    """Make every logger that sees URLs hide tokens, whoever configured it."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, TokenFilter) for known in logger.filters):
            logger.addFilter(TokenFilter())


def logging_config(level: str) -> dict[str, Any]:
    """A configuration for `logging.config.dictConfig`: one line a record, on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "format": "{asctime} {levelname:<7} {name}: {message}",
                "style": "{",
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "app": {"level": level.upper()},
            "uvicorn.error": {"level": level.upper() if level != "info" else "WARNING"},
            "uvicorn.access": {"level": level.upper()},
        },
    }

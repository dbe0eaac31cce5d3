"""What the commands beside ``kernelkeep`` itself have in common."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

from .settings import Settings, explain

__all__ = ["CommandParser", "add_state_dir", "printable", "say", "settings_of", "state_dir_of"]


class CommandParser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        # The text repeats what was typed, which may have any characters.
        say(printable(message.removeprefix("argument ")))
        sys.exit(2)


Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


def add_state_dir(parser: Parser) -> Parser:
    """Add the options that tell the state directory; returns the parser."""
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument(
        "--config", type=Path, help="the server's configuration file, which names it"
    )
    return parser


def printable(text: str) -> str:
    """A text with a question mark for each character that could control a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def settings_of(config: Path | None) -> Settings:
    """The options of a server, from the environment and a configuration file.

    If an option is wrong, this prints why, and exits with 2.
    """
    try:
        return (Settings if config is None else partial(Settings, config=config))()
    except (ValidationError, SettingsError) as error:
        say(explain(error))
        sys.exit(2)


def state_dir_of(given: Path | None, config: Path | None) -> Path:
    """The state directory: ``given``, or as the environment or a configuration file tells it.

    If it cannot be told, this prints why, and exits with 2.
    """
    try:
        return (given or settings_of(config).state_dir).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a loop of links
        say(f"--state-dir: {error}")
        sys.exit(2)


def say(text: str) -> None:
    """Print lines to stderr, each with the program's name before it."""
    for line in text.splitlines():
        print(f"kernelkeep: {line}", file=sys.stderr)

"""Groups of options, and the types of options that are not just a text, a number or a switch."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic_settings import NoDecode

__all__ = [
    "AbsolutePath",
    "AbsolutePathOrNone",
    "Counts",
    "Networks",
    "OptionGroup",
    "Paths",
    "Words",
    "json_object",
    "meant",
    "once",
    "shown",
    "spelled",
]


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs. Raises `ValueError` for a name that comes twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)}: given twice")
        found[name] = value
    return found


def json_object(text: str) -> Any:
    """Parse JSON. Raises `ValueError` if the text is not JSON, or an object has a name twice."""
    try:
        return json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not a JSON object") from None


def shown(name: object) -> str:
    """A name, which may have any characters, in one short line."""
    text = str(name)
    return text if re.fullmatch(r"[A-Za-z0-9_.@-]{1,60}", text) else ascii(text[:60])


def meant(name: str, names: Collection[str]) -> str:
    """The end of an error about an unknown name: a question if one of ``names`` is like it."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"; is {close[0]} meant?" if close else ""


def _words(value: Any) -> Any:
    """A list from a text with commas, as people write it in environment variables, or from JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("not a JSON list of strings") from None
    return [word.strip() for word in value.split(",") if word.strip()]


def _counts(value: Any) -> Any:
    """A dict of numbers from a text such as ``python3=2,ir=1``, or from a JSON object."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("not a JSON object") from None
    elif isinstance(value, str):
        pairs = (word.partition("=") for word in value.split(",") if word.strip())
        value = {name.strip(): number.strip() for name, _, number in pairs}
    if not isinstance(value, dict):
        raise ValueError("not names with a number each, like python3=2,ir=1")
    for name, number in value.items():
        if not name or not re.fullmatch(r"[0-9]{1,4}", str(number)):
            raise ValueError(f"{str(name)[:40]!r} needs a number, like python3=2")
    return {name: int(number) for name, number in value.items()}


def _networks(value: list[str]) -> list[str]:
    for network in value:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ValueError("not an IP address or network, like 10.0.0.0/8") from None
    return value


def _named(value: Any) -> Any:
    """A path that is not empty: an empty variable would mean the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty; the working directory is written as a dot")
    return value


def _absolute(value: Path) -> Path:
    try:
        return value.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # an unknown user's home, a loop of links, a long name
        raise ValueError(getattr(error, "strerror", None) or str(error)) from None


def _absolute_or_none(value: Path | None) -> Path | None:
    return None if value is None else _absolute(value)


def spelled(pattern: str, refusal: str) -> AfterValidator:
    """A validator that refuses a text which does not match a regular expression.

    ``refusal`` is the error's text. An empty text is accepted.
    """

    def check(value: str) -> str:
        if value and not re.fullmatch(pattern, value):
            raise ValueError(refusal)
        return value

    return AfterValidator(check)


# NoDecode: pydantic-settings would demand JSON for them in the environment.
Words = Annotated[list[str], NoDecode, BeforeValidator(_words)]
Networks = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_networks)]
Paths = Annotated[list[Path], NoDecode, BeforeValidator(_words)]
Counts = Annotated[dict[str, int], NoDecode, BeforeValidator(_counts)]
AbsolutePath = Annotated[Path, BeforeValidator(_named), AfterValidator(_absolute)]
AbsolutePathOrNone = Annotated[
    Path | None, BeforeValidator(_named), AfterValidator(_absolute_or_none)
]


class OptionGroup(BaseModel):
    """A group of options; `Settings` has the options of all groups.

    The docstring of a group is its heading in docs/configuration.md.
    """

    table: ClassVar[str] = ""
    """The table of the configuration file that may hold the group's options; empty for none."""

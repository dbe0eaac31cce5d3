"""The options about what each owner may use, and how limits are written.

A limit is a number, a size in bytes (``4GiB``) or a span of time (``12h``), by its kind, or the
word ``none``. Names of owners and groups are checked elsewhere (`app.managers.limits.limits`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from .durations import InvalidDuration, parse_duration
from .option_types import OptionGroup, json_object, once, shown

__all__ = ["LIMITS", "LimitTable", "LimitTables", "OwnerLimits", "limit_table"]

NONE: Final = "none"
"""The word for no limit: without it, the limit of a group or of everybody would hold."""

MAX_VALUE: Final = 2**53
"""The largest value; JSON has no larger whole numbers that every client reads."""

_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kKMGT]?)(i?)B?", re.ASCII)


def _number(value: object) -> float:
    """Parse a number, or a text of decimal digits. Raises `ValueError` for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,6})?", value, re.ASCII):
        raise ValueError("not a number")
    return float(value)


def _whole(least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = _number(value)
        if not least <= number <= MAX_VALUE or number != int(number):
            raise ValueError(f"not a whole number from {least}")
        return int(number)

    return parse


def _rate(value: object) -> float:
    number = _number(value)
    if not 0 < number <= MAX_VALUE:
        raise ValueError("not a number above 0")
    return number


def _size(number: str, prefix: str, binary: str) -> float:
    """The bytes of a size like ``4GiB``: ``number`` 4, ``prefix`` G, and ``binary`` i.

    A prefix stands for a power of 1024 with the i, and for a power of 1000 without it.
    """
    power = "kMGT".index("k" if prefix == "K" else prefix) + 1 if prefix else 0
    factor: int = (1024 if binary else 1000) ** power
    return float(number) * factor


def _bytes(least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None and isinstance(value, str):
            raise ValueError("not a size, like 4GiB, 500MB or 1048576")
        size = _size(*found.groups()) if found else _number(value)
        if not least <= size <= MAX_VALUE or size != int(size):
            raise ValueError(f"not a whole number of bytes from {least}")
        return int(size)

    return parse


def _seconds(value: object) -> float:
    if isinstance(value, str) and value[-1:].isalpha():
        try:
            return parse_duration(value)
        except InvalidDuration as error:
            raise ValueError(str(error)) from None
    return _rate(value)


LIMITS: Final[Mapping[str, Callable[[object], int | float]]] = {
    "kernels": _whole(0),
    "starts_per_minute": _whole(1),
    "memory": _bytes(2**20),
    "cpu": _rate,
    "processes": _whole(1),
    "open_files": _whole(16),
    "idle_timeout": _seconds,
    "lifetime": _seconds,
    "queued_executions": _whole(1),
    "log_bytes": _bytes(2**16),
    "contents_bytes_per_day": _bytes(0),
    "requests_per_second": _rate,
    "websockets": _whole(0),
}
"""What reads the value of each limit, or raises `ValueError` with what the value has to be."""


def limit_table(value: Any) -> dict[str, int | float | None]:
    """Limits by name, from a table, or from a text like ``kernels=10,memory=4GiB`` or JSON.

    None is for no limit. Raises `ValueError`, which names the limit.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json_object(value)
    elif isinstance(value, str):
        pairs = (word.partition("=") for word in value.split(",") if word.strip())
        value = once((name.strip(), number.strip()) for name, _, number in pairs)
    if not isinstance(value, dict):
        raise ValueError("not limits with a value each, like kernels=10,memory=4GiB")
    return {name: _limit(name, written) for name, written in value.items()}


def _limit(name: str, written: object) -> int | float | None:
    read = LIMITS.get(name)
    if read is None:
        raise ValueError(f"{shown(name)}: no limit; there are {', '.join(LIMITS)}")
    if written is None or written == NONE:
        return None
    try:
        return read(written)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from None


def _limit_tables(value: Any) -> dict[str, dict[str, int | float | None]]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json_object(value)
    if not isinstance(value, dict):
        raise ValueError('not a JSON object of limits by name, like {"anna": {"kernels": 10}}')
    tables = {}
    for name, table in value.items():
        try:
            tables[name] = limit_table(table)
        except ValueError as error:
            raise ValueError(f"{shown(name)}: {error}") from None
    return tables


# NoDecode: pydantic-settings would demand JSON for it in the environment.
LimitTable = Annotated[dict[str, Any], NoDecode, BeforeValidator(limit_table)]
LimitTables = Annotated[dict[str, dict[str, Any]], NoDecode, BeforeValidator(_limit_tables)]


class OwnerLimits(OptionGroup):
    """Limits of owners."""

    table = "limits"

    owner_limits: LimitTable = Field(
        {},
        description="What each owner may use, like kernels=10,websockets=20; see docs/owners.md.",
    )
    group_limits: LimitTables = Field(
        {},
        description='Limits of the members of groups, in place of owner_limits: {"staff": '
        '{"kernels": 50}}; of an owner\'s groups the most generous counts.',
    )
    limits_by_name: LimitTables = Field(
        {},
        description='Limits of single owners, in place of both: {"anna": {"kernels": "none"}}.',
    )

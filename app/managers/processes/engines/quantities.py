"""Values of options as numbers: plain ones, and quantities as Kubernetes writes them.

A quantity is a number with a suffix or an exponent: 500m, 0.5, 2Gi, 1e3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final

__all__ = ["InvalidQuantity", "Measure", "Value", "least", "number", "quantity"]

Value = bool | int | float | str
"""A value that a request to start a kernel can give for an option of the kernel's engine."""

Measure = Callable[[str, Value], Decimal]
"""Called with an option's name and a value; returns the value as a number, to compare it with
others. Raises `ValueError`, whose text says what the value is not, if it is no number."""

_QUANTITY: Final = re.compile(
    r"(\+?[0-9]{1,18}(?:\.[0-9]{0,9})?|\+?\.[0-9]{1,9})"
    r"(?:(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)|[eE]([+-]?[0-9]{1,2}))?",
    re.ASCII,
).fullmatch

_BINARY: Final = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


class InvalidQuantity(ValueError):
    """A value that is not a quantity."""


def quantity(written: str | float) -> Decimal:
    """The number that a quantity stands for: 0.5 for 500m. Raises `InvalidQuantity`."""
    found = _QUANTITY(str(written))
    if found is None:
        raise InvalidQuantity(f"{str(written)[:40]!a} is no quantity, like 500m, 2 or 4Gi")
    number, suffix, exponent = Decimal(found[1]), found[2], found[3]
    if exponent is not None:
        return number * Decimal(10) ** int(exponent)
    if suffix in _BINARY:
        return number * Decimal(1024) ** (_BINARY.index(suffix) + 1)
    return number * Decimal(10) ** _DECIMAL.get(suffix or "", 0)


def least(written: str | float | None, most: str | float) -> str | float:
    """The lesser of two quantities, as it is written; ``most`` if ``written`` is None.

    Raises `InvalidQuantity`.
    """
    if written is None or quantity(written) > quantity(most):
        return most
    return written


def number(_name: str, value: Value) -> Decimal:
    """A `Measure` for options that are plain numbers: the value itself, in the option's own unit.

    Raises `ValueError` for a boolean or a text.
    """
    if isinstance(value, bool | str):
        raise ValueError("not a number")
    return Decimal(str(value))

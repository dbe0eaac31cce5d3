"""Quantities as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from app.managers.processes.engines.quantities import InvalidQuantity, least, number, quantity


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("0", 0),
        (2, 2),
        (0.5, Decimal("0.5")),
        ("500m", Decimal("0.5")),
        ("1.5", Decimal("1.5")),
        (".5", Decimal("0.5")),
        ("+1", 1),
        ("128Mi", 128 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("2k", 2000),
        ("1e3", 1000),
        ("12E-1", Decimal("1.2")),
        ("1E", 10**18),
        ("7n", Decimal("7e-9")),
    ],
)
def test_a_quantity_means_a_number(written: str | float, means: Decimal | int) -> None:
    assert quantity(written) == means


@pytest.mark.parametrize("written", ["", "much", "-1", "1 Gi", "1GB", "1e999", "٣", "1" * 30, True])
def test_what_is_none(written: str | float) -> None:
    with pytest.raises(InvalidQuantity):
        quantity(written)


def test_the_lesser_stays_as_it_was_written() -> None:
    assert least("1Gi", str(2**31)) == "1Gi"
    assert least("4Gi", str(2**31)) == str(2**31)
    assert least(None, "1500m") == "1500m"


def test_a_number_is_measured_and_what_is_none_is_refused() -> None:
    assert number("port", 22) == 22
    assert number("share", 0.1) == Decimal("0.1")
    for value in (True, "22"):
        with pytest.raises(ValueError, match="not a number"):
            number("port", value)

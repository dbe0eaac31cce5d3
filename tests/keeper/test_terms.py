"""A keeper obeys the replica that has come with the highest term, and no other."""

from __future__ import annotations

import pytest

from app.keeper.terms import MAX_GONE, Terms


def test_the_highest_term_is_obeyed() -> None:
    terms = Terms()
    assert not terms
    assert terms.obeys("k", "a")
    assert terms.obeys("k", "")
    assert terms.come("k", 1, "a") is None
    assert terms
    assert terms.come("k", 1, "a") is None
    assert terms.come("k", 2, "b") == "a"
    assert terms.obeys("k", "b")
    assert not terms.obeys("k", "a")
    assert not terms.obeys("k", "")
    for late in (1, 2):
        with pytest.raises(ValueError, match="another replica has kernel k, in term 2"):
            terms.come("k", late, "a")
    assert terms.come("k", 3, "a") == "b"
    assert terms.come("k", 5, "a") is None


def test_a_late_request_of_the_same_replica_is_obeyed_and_lowers_nothing() -> None:
    terms = Terms()
    terms.come("k", 3, "a")
    assert terms.come("k", 2, "a") is None
    with pytest.raises(ValueError, match="term 3"):
        terms.come("k", 3, "b")


def test_a_replica_that_has_let_go_of_a_kernel_comes_for_nothing() -> None:
    terms = Terms()
    with pytest.raises(ValueError, match="has let go of kernel k"):
        terms.come("k", 0, "a")
    assert not terms


def test_which_kernels_are_whose() -> None:
    terms = Terms()
    terms.come("k", 1, "a")
    assert terms.has("a", "k")
    assert not terms.has("", "k")
    assert terms.of_any("k", ["b", "a"])
    assert not terms.of_any("k", ["b"])
    assert not terms.of_any("other", ["a"])
    assert terms.has("", "other")
    assert not terms.has("a", "other")


def test_the_term_of_a_kernel_that_is_gone_counts_for_a_while() -> None:
    terms = Terms()
    terms.forget("unknown")
    terms.come("k", 2, "b")
    terms.forget("k")
    assert not terms.obeys("k", "a")
    with pytest.raises(ValueError, match="term 2"):
        terms.come("k", 1, "a")
    terms.come("k", 3, "a")  # a kernel of the same id, started anew
    terms.forget("k")
    for number in range(MAX_GONE):
        terms.come(str(number), 1, "b")
        terms.forget(str(number))
    assert terms.obeys("k", "c")
    assert not terms.obeys("0", "c")

"""The terms in which a replica has its kernels."""

from __future__ import annotations

from app.managers.replicas.terms import Terms


def test_a_kernel_has_a_term_from_its_start_or_its_take_to_its_end() -> None:
    terms = Terms()
    assert terms.of("k") == 0
    assert "k" not in terms
    terms.begin("k")
    first = terms.of("k")
    assert first > 0
    terms.take("k", first + 100)
    assert terms.of("k") == first + 100
    assert [*terms] == ["k"]
    terms.drop("k", first)
    assert "k" in terms
    terms.drop("k", first + 100)
    terms.drop("k")
    assert terms.of("k") == 0


def test_a_kernel_that_begins_anew_in_the_same_second_has_a_term_of_its_own() -> None:
    terms = Terms()
    terms.begin("k")
    gone = terms.of("k")
    terms.begin("k")
    assert terms.of("k") > gone
    terms.drop("k", gone)  # what was to be dropped later is the term of the one that is gone
    assert terms.of("k") > gone


def test_terms_as_they_were_stay_as_they_were() -> None:
    terms = Terms()
    terms.take("k", 5)
    before = terms.now()
    terms.take("k", 7)
    terms.take("other", 1)
    assert before.of("k") == 5
    assert [*before] == ["k"]

"""The corpus of labelled answers is whole, and the verifiers keep to their measured rates on it."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from house_kit import REPOSITORY
from verdict_kit import CORPUS, labelled_pairs, rates, table, verdicts

MOST_ERRORS = 0.01


def test_the_corpus_is_large_enough_and_says_nothing_twice() -> None:
    pairs = labelled_pairs()
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(pair.verifier, pair.gold, pair.text) for pair in pairs}) == len(pairs)
    parts = Counter(pair.part for pair in pairs)
    assert set(parts) <= {"given", "before", "after"}
    assert parts["before"] >= 300
    assert parts["before"] >= parts["after"]


def test_what_was_written_before_is_never_edited() -> None:
    lines = [line for line in CORPUS.read_text().splitlines() if '"part": "before"' in line]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "a12836417a094303038612d82d5159734f6cc954f527000898fe39db6964f6ef"


@pytest.mark.parametrize("verifier", ["exact", "number", "choice", "math"])
def test_a_verifier_errs_on_at_most_one_pair_in_a_hundred(verifier: str) -> None:
    pairs = [pair for pair in labelled_pairs() if pair.verifier == verifier]
    errors = rates(pairs, verdicts(pairs))
    assert errors.false_positive_rate <= MOST_ERRORS, errors.false_positives
    assert errors.false_negative_rate <= MOST_ERRORS, errors.false_negatives


def test_the_program_of_every_given_case_is_found() -> None:
    pairs = [pair for pair in labelled_pairs() if pair.kind == "which-code-block"]
    assert rates(pairs, verdicts(pairs)).false_negatives == ()


def test_the_page_has_the_measured_rates() -> None:
    pairs = [pair for pair in labelled_pairs() if pair.verifier != "python_tests"]
    page = (REPOSITORY / "docs" / "verifiers.md").read_text()
    assert "\n".join(table(pairs, verdicts(pairs))) in page

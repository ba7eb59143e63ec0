"""The corpus of labelled answers is whole, and the verifiers keep to their measured rates on it."""

from __future__ import annotations

import hashlib
from collections import Counter

from verdict_kit import CORPUS, labelled_pairs


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

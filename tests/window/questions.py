"""Questions of any length, as token ids: facts far away, facts that lead to facts, a program again, and sums nearby.

A sequence is filler with something hidden in it, and ends in answers. Position by position it is said which tokens are
answers, to be known from what stands before them; a sequence counts as right where all of them are likeliest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PAD, ASK, FACT, HOP, START, AGAIN, SUM = range(7)
FILLERS, KEYS, VALUES = range(8, 24), range(24, 56), range(56, 72)
VOCABULARY = 72
ASKED = 4
"""Questions at the end of a sequence of facts, and how many facts answer them; as many others distract."""
PROGRAM = 12
"""Instructions of a program."""

Drawn = tuple[np.ndarray, np.ndarray]
"""Token ids and whether each is an answer, both ``(T,)``."""


def _hidden(rng: np.random.Generator, facts: list[list[int]], length: int) -> list[int]:
    """Facts at random places of a text of filler that has ``length`` tokens; none is cut."""
    room = length - sum(map(len, facts))
    places = np.sort(rng.integers(0, room + 1, len(facts)))
    text: list[int] = []
    for number, fact in enumerate(facts):
        before = int(places[number] - (places[number - 1] if number else 0))
        text += [*rng.choice(FILLERS, before), *fact]
    return [int(token) for token in [*text, *rng.choice(FILLERS, length - len(text))]]


def _finished(text: list[int], tail: list[int], right: list[bool]) -> Drawn:
    ids = np.array([*text, *tail], dtype=np.int64)
    answers = np.zeros(len(ids), dtype=bool)
    answers[len(text) :] = right  # not per token
    return ids, answers


def needle(rng: np.random.Generator, length: int) -> Drawn:
    """Facts ``FACT key value`` among filler and distractors; then ``ASK key`` and its value, for some of them."""
    keys = rng.choice(KEYS, 2 * ASKED, replace=False)
    values = rng.choice(VALUES, 2 * ASKED)
    facts = [[FACT, int(k), int(v)] for k, v in zip(keys, values, strict=True)]
    chosen = rng.permutation(2 * ASKED)[:ASKED]
    tail = [t for i in chosen for t in (ASK, int(keys[i]), int(values[i]))]
    rng.shuffle(facts)
    return _finished(_hidden(rng, facts, length - len(tail)), tail, [False, False, True] * ASKED)


def two_hop(rng: np.random.Generator, length: int) -> Drawn:
    """Facts ``HOP a b`` and ``HOP b c``; then ``ASK a`` and b, and c. Each fact may be far from the other."""
    chains = rng.choice(KEYS, (ASKED, 3), replace=False)
    facts = [[HOP, int(x), int(y)] for a, b, c in chains for x, y in ((a, b), (b, c))]
    rng.shuffle(facts)
    asked = chains[: ASKED // 2]
    tail = [t for a, b, c in asked for t in (ASK, int(a), int(b), int(c))]
    return _finished(_hidden(rng, facts, length - len(tail)), tail, [False, False, True, True] * len(asked))


def repeated_program(rng: np.random.Generator, length: int) -> Drawn:
    """``START`` and a program at the beginning, filler, then ``AGAIN`` and the same program."""
    program = [int(token) for token in rng.choice(KEYS, PROGRAM)]
    gap = rng.choice(FILLERS, length - 2 * PROGRAM - 2)
    text = [START, *program, *(int(token) for token in gap)]
    return _finished(text, [AGAIN, *program], [False, *[True] * PROGRAM])


def nearby_sums(rng: np.random.Generator, length: int) -> Drawn:
    """``SUM a b c`` with c = a + b, again and again: all that is needed stands two tokens before."""
    n = len(VALUES)
    text = [int(token) for token in rng.choice(FILLERS, length % 4)]
    right = [False] * len(text)
    for _ in range(length // 4):
        a, b = (int(x) for x in rng.integers(0, n, 2))
        text += [SUM, VALUES[a], VALUES[b], VALUES[(a + b) % n]]
        right += [False, False, False, True]
    return np.array(text, dtype=np.int64), np.array(right)


QUESTIONS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "needle": needle,
    "two_hop": two_hop,
    "repeated_program": repeated_program,
    "nearby_sums": nearby_sums,
}
"""Long dependencies, and the last a short one."""


def batch(name: str, *, key: tuple[int, ...], sequences: int, length: int) -> Drawn:
    """Sequences of one length: a pure function of its arguments, ``(B, T)`` each."""
    rng = np.random.default_rng([*key, length, list(QUESTIONS).index(name)])
    drawn = [QUESTIONS[name](rng, length) for _ in range(sequences)]
    return np.stack([ids for ids, _ in drawn]), np.stack([right for _, right in drawn])

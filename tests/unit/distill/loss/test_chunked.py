"""The chunked reverse KL on vocabularies small enough that every text is enumerated: expected gradients are exact.

A student and a teacher are tables: a distribution for every prefix of tokens. What the student may draw is written in
the teacher's tokens, scored, laid back and learnt from by the real code; the truth is a loop over the same tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from losses_kit import PLAIN

from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import LOSSES, bind
from mopd.distill.payloads import Sampled
from mopd.distill.recipe import ChunkedReverseKL
from mopd.distill.types import Prompt, Rollout, ScoredRollout, TeacherScore, TopK
from mopd.teachers.retokenized import Retokenizer, TokenizerSide
from mopd.teachers.token_bytes import TokenBytes
from mopd.teachers.views import TeacherText

WHOLE = ChunkedReverseKL(k=64, advantage_clip=1e9, gate=(1e-9, 1e9))  # no clip, no gate
END = "$"
PROMPT = 1
"""Tokens of a prompt, which is the same for all."""
Table = dict[tuple[str, ...], dict[str, float]]
"""Of every prefix of tokens the probabilities of the next one."""


def greedy(text: str, tokens: Sequence[str]) -> list[str]:
    """A text in tokens, the longest that fits first, without END."""
    written: list[str] = []
    while len("".join(written)) < len(text):
        place = len("".join(written))
        written.append(max((token for token in tokens if text.startswith(token, place)), key=len))
    return written


def table_of(texts: Mapping[str, float], tokens: Sequence[str]) -> Table:
    """The conditionals of a distribution over texts, each in its tokens and closed by END."""
    masses: Table = {}
    for text, mass in texts.items():
        written = [*greedy(text, tokens), END]
        for n, token in enumerate(written):
            row = masses.setdefault(tuple(written[:n]), {})
            row[token] = row.get(token, 0.0) + mass
    return {prefix: {t: m / sum(row.values()) for t, m in row.items()} for prefix, row in masses.items()}


def drawn_texts(letters: str, longest: int, *, seed: int, shortest: int = 0) -> dict[str, float]:
    """A distribution over all texts up to a length, drawn letter by letter."""
    rng = np.random.default_rng(seed)
    texts: dict[str, float] = {}

    def grow(text: str, mass: float) -> None:
        weights = np.exp(1.2 * rng.normal(size=len(letters) + 1))
        weights[-1] = 0.0 if len(text) < shortest else weights[-1]
        weights /= weights.sum()
        if len(text) == longest:
            texts[text] = mass
            return
        if weights[-1] > 0:
            texts[text] = mass * float(weights[-1])
        for letter, weight in zip(letters, weights, strict=False):
            grow(text + letter, mass * float(weight))

    grow("", 1.0)
    return texts


@dataclass
class World:
    """A student and a teacher as tables, over vocabularies whose first token is END."""

    student_tokens: list[str]
    teacher_tokens: list[str]
    student: Table
    teacher: Table

    def side(self, tokens: list[str]) -> TokenizerSide:
        strings = TokenBytes((None, *(token.encode() for token in tokens)), leads=False)
        numbers = {token: i for i, token in enumerate([END, *tokens])}

        def encode(text: str) -> list[int]:
            return [numbers[token] for token in greedy(text, tokens)]

        def each(texts: Sequence[str]) -> list[list[int]]:
            return [
                encode(text) if set(text) <= set("".join(t for t in tokens if len(t) == 1)) else [] for text in texts
            ]

        return TokenizerSide(strings, encode, (0,), each)

    def drawn(self) -> list[tuple[float, list[str]]]:
        """Every sequence that the student may draw, with its probability."""
        done: list[tuple[float, list[str]]] = []

        def grow(mass: float, written: list[str]) -> None:
            if written[-1:] == [END]:
                done.append((mass, written))
                return
            for token, p in self.student[tuple(written)].items():
                grow(mass * p, [*written, token])

        grow(1.0, [])
        return done

    def logits(self) -> dict[tuple[str, ...], torch.Tensor]:
        """The student's parameters: logits of the tokens that it may write after each prefix."""
        return {
            prefix: torch.tensor([math.log(p) for p in row.values()], dtype=torch.float64, requires_grad=True)
            for prefix, row in self.student.items()
        }

    def whole_logits(self, of: torch.Tensor, prefix: tuple[str, ...]) -> torch.Tensor:
        """A row over the whole vocabulary; what the student cannot write has no probability."""
        numbers = {token: i for i, token in enumerate([END, *self.student_tokens])}
        places = torch.tensor([numbers[token] for token in self.student[prefix]])
        blank = torch.full((len(numbers),), -1e4, dtype=torch.float64)
        return blank.index_put((places,), of)


def gradient_of(loss: torch.Tensor, parameters: Mapping[tuple[str, ...], torch.Tensor]) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    pairs = zip(grads, parameters.values(), strict=True)
    return torch.cat([torch.zeros_like(p) if g is None else g for g, p in pairs])


def expected_gradient(world: World, estimator: str, settings: Any, *, k: int | None = None) -> torch.Tensor:
    """The gradient of the estimator, expected over what the student draws, by the code that a run uses.

    Args:
        k: how many of the teacher's likeliest tokens it answers with; None: all.
    """
    parameters = world.logits()
    numbers = {token: i for i, token in enumerate([END, *world.student_tokens])}
    size = len(world.teacher_tokens) + 1
    retokenizer = Retokenizer(
        "other",
        student=world.side(world.student_tokens),
        teacher=world.side(world.teacher_tokens),
        reads=lambda prompt: TeacherText("", (0,) * 2),
        context=None,
        width=len(numbers),
    )
    masses, scored, rows = [], [], []
    for index, (mass, written) in enumerate(world.drawn()):
        n = len(written)
        logps = [math.log(world.student[tuple(written[:t])][token]) for t, token in enumerate(written)]
        rollout = Rollout(
            prompt=Prompt("d", f"d/{index}", (0,) * PROMPT, "", ""),
            token_ids=np.array([0] * PROMPT + [numbers[token] for token in written], dtype=np.int32),
            loss_mask=np.arange(PROMPT + n) >= PROMPT,
            sampler_logprobs=np.array([0.0] * PROMPT + logps, dtype=np.float32),
            finish="eos",
            version=(0, 0),
            group=index,
            index=index,
        )
        read = retokenizer(rollout)
        assert not read.unscored
        teacher_names = [END, *world.teacher_tokens]
        completion = [teacher_names[i] for i in read.rollout.token_ids[read.rollout.loss_mask]]
        logq = np.full((len(completion), size), -60.0)
        for m in range(len(completion)):
            for token, q in world.teacher[tuple(completion[:m])].items():
                logq[m, teacher_names.index(token)] = math.log(q)
        sampled = logq[range(len(completion)), [teacher_names.index(token) for token in completion]].astype(np.float32)
        ids = np.argsort(-logq, axis=1, kind="stable")[:, : k or size].astype(np.int32)
        kept = np.take_along_axis(logq, ids, axis=1).astype(np.float32)
        rest = np.log(np.maximum(1 - np.exp(kept.astype(np.float64)).sum(1), 1e-30)).astype(np.float32)
        answer = TopK(ids, kept, rest, sampled) if estimator == "chunked_reverse_kl" else Sampled(sampled)
        scored.append(ScoredRollout(rollout, ((1.0, TeacherScore("other", retokenizer.payload(read, answer))),)))
        masses.append(mass)
        rows.append([world.whole_logits(parameters[tuple(written[:t])], tuple(written[:t])) for t in range(n)])
    microbatch = collate(
        scored,
        token_weight={"d": 1.0},
        domains=["d"],
        pad_id=0,
        payload=bind(settings).payload,
        reward_advantages=None,
        device="cpu",
        needs_each_teacher=LOSSES[estimator].needs_each_teacher,
    )
    blank = torch.zeros(len(numbers), dtype=torch.float64)
    T = microbatch.token_ids_BT.shape[1]  # not per token
    padded = [[blank] * PROMPT + row + [blank] * (T - PROMPT - len(row)) for row in rows]
    logits_BTV = torch.stack([torch.stack(row) for row in padded])
    loss_BT = LOSSES[estimator].token_loss(logits_BTV, microbatch, settings).loss_BT
    loss = (torch.tensor(masses, dtype=torch.float64).unsqueeze(1) * loss_BT).sum()
    return gradient_of(loss, parameters)


def token_kl_gradient(world: World, target: Table) -> torch.Tensor:
    """The gradient of ``sum_t KL(student || target)`` over what the student draws, states held as they are.

    Args:
        target: over the student's own tokens.
    """
    parameters = world.logits()
    loss = torch.zeros((), dtype=torch.float64)
    for mass, written in world.drawn():
        for t in range(len(written)):
            prefix = tuple(written[:t])
            logp = parameters[prefix].log_softmax(-1)
            for i, token in enumerate(world.student[prefix]):
                loss = loss + mass * logp[i].exp() * (logp[i] - math.log(target[prefix][token]))
    return gradient_of(loss, parameters)


def letters_and_groups(n: int, *, seed: int, of_teacher: int | None = None) -> World:
    """A student of letters and a teacher of groups of ``n``, on texts of two groups: no cut depends on what follows."""
    groups = ["".join(letters) for letters in itertools.product("ab", repeat=n)]
    own = drawn_texts("ab", 2 * n, seed=seed, shortest=2 * n)
    teacher = drawn_texts("ab", 2 * n, seed=seed + 100 if of_teacher is None else of_teacher, shortest=2 * n)
    return World(["a", "b"], groups, table_of(own, ["a", "b"]), table_of(teacher, groups))


def parts_kl_gradient(world: World, n: int, parts: Sequence[int]) -> torch.Tensor:
    """The gradient of the KL of parts of chunks, each given what was before it, what was before held as it is.

    Args:
        n: letters of a chunk.
        parts: how many letters each part of it has.
    """
    parameters = world.logits()

    def logp(prefix: str, letters: str) -> torch.Tensor:
        here = [(*prefix, *letters[:m]) for m in range(len(letters))]
        terms = [
            parameters[h].log_softmax(-1)[list(world.student[h]).index(x)] for h, x in zip(here, letters, strict=True)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def q(before: str, begun: str) -> float:
        """That the teacher's chunk begins so."""
        row = world.teacher[(before,) if before else ()]
        return math.fsum(mass for token, mass in row.items() if token.startswith(begun))

    loss = torch.zeros((), dtype=torch.float64)
    for before in ("", *world.teacher_tokens):
        for place, size in zip(itertools.accumulate([0, *parts]), parts, strict=False):
            for begun in map("".join, itertools.product("ab", repeat=place)):
                held = math.exp(logp("", before + begun).item())
                for part in map("".join, itertools.product("ab", repeat=size)):
                    logp_part = logp(before + begun, part)
                    logq = math.log(q(before, begun + part) / q(before, begun))
                    loss = loss + held * logp_part.exp() * (logp_part - logq)
    return gradient_of(loss, parameters)


@pytest.mark.parametrize("seed", [1, 2])  # whose teachers find nothing less likely than 1%
@pytest.mark.parametrize(
    ("estimator", "settings", "parts"),
    [
        ("chunked_reverse_kl", WHOLE, [1, 1]),
        ("chunked_reverse_kl", WHOLE, [1, 1, 1]),
        ("policy_gradient", PLAIN, [2]),
        ("policy_gradient", PLAIN, [3]),
    ],
)
def test_expected_gradient_is_that_of_the_kl_of_a_chunks_parts_where_cuts_depend_on_nothing_that_follows(
    seed: int, estimator: str, settings: Any, parts: list[int]
) -> None:
    world = letters_and_groups(sum(parts), seed=seed)
    truth = parts_kl_gradient(world, sum(parts), parts)
    ours = expected_gradient(world, estimator, settings)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)
    assert ours.abs().max() > 0.01
    other = parts_kl_gradient(world, sum(parts), [sum(parts)] if len(parts) > 1 else [1, sum(parts) - 1])
    assert (ours - other).abs().max() > 1e-3, "the parts matter"


@pytest.mark.parametrize("k", [None, 1, 2])
def test_a_teacher_of_the_same_tokens_under_other_numbers_gives_the_exact_reverse_kl(k: int | None) -> None:
    """Whatever k is: a drawn token that is not among the teacher's likeliest is learnt from as it was drawn."""
    tokens = ["a", "b", "ab"]
    texts, others = drawn_texts("ab", 3, seed=5), drawn_texts("ab", 3, seed=6)
    world = World(tokens, ["ab", "b", "a"], table_of(texts, tokens), table_of(others, tokens))
    truth = token_kl_gradient(world, table_of(others, tokens))
    torch.testing.assert_close(expected_gradient(world, "chunked_reverse_kl", WHOLE, k=k), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["chunked_reverse_kl", "policy_gradient"])
def test_no_gradient_where_a_teacher_of_other_tokens_says_what_the_student_says(estimator: str) -> None:
    settings: Any = WHOLE if estimator == "chunked_reverse_kl" else PLAIN
    agreeing = letters_and_groups(3, seed=7, of_teacher=7)
    assert expected_gradient(agreeing, estimator, settings).abs().max() < 1e-6
    assert expected_gradient(letters_and_groups(3, seed=7), estimator, settings).abs().max() > 0.01


VOCABULARIES: dict[str, tuple[list[str], list[str]]] = {
    "longer in the teacher": (["a", "b", "c"], ["a", "b", "c", "ab", "bc", "abc"]),
    "longer in the student": (["a", "b", "c", "ab", "bc", "abc"], ["a", "b", "c"]),
    "each some": (["a", "b", "c", "ab", "bc"], ["a", "b", "c", "ab", "ca", "bca"]),
    "crossed": (["a", "b", "c", "ab", "abc"], ["a", "b", "c", "bc", "ca", "abc"]),
}
LEAST = {
    "longer in the teacher": (0.99, 0.94),
    "longer in the student": (0.89, 0.90),
    "each some": (0.86, 0.79),
    "crossed": (0.97, 0.75),
}
"""Cosine with the true gradient, the least of six worlds: of the estimator; of sums over chunks alone."""


def worlds(kind: str) -> list[tuple[World, Table]]:
    """Six students half way between a distribution of their own and their teacher's, and that in their tokens."""
    student_tokens, teacher_tokens = VOCABULARIES[kind]
    made = []
    for seed in range(6):
        texts, own = drawn_texts("abc", 5, seed=seed), drawn_texts("abc", 5, seed=seed + 50)
        mixed = {text: (texts[text] + own[text]) / 2 for text in texts}
        student, teacher = table_of(mixed, student_tokens), table_of(texts, teacher_tokens)
        made.append((World(student_tokens, teacher_tokens, student, teacher), table_of(texts, student_tokens)))
    return made


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_expected_gradient_points_where_that_of_the_kl_over_the_students_tokens_does(kind: str) -> None:
    cosines = []
    for world, target in worlds(kind):
        truth = token_kl_gradient(world, target)
        for estimator, settings in (("chunked_reverse_kl", WHOLE), ("policy_gradient", PLAIN)):
            ours = expected_gradient(world, estimator, settings)
            cosines.append(float(torch.nn.functional.cosine_similarity(ours, truth, dim=0)))
    by_chunks, by_sums = cosines[::2], cosines[1::2]  # not per token
    least = LEAST[kind]
    assert min(by_chunks) >= least[0]
    assert min(by_sums) >= least[1]

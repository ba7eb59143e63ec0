"""Shares of a step: each rule against loops, at its bounds, through the student, and its refusals."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import recipe, routes_problems
from student_kit import DOMAINS, SGD, SHARES, ProcessRanks, furthest, make_batch, make_model, make_spec, student

from mopd.distill.loss.registry import bind
from mopd.distill.loss.shares import SHARE_RULES, DomainTokens, normalised, step_tokens
from mopd.distill.recipe import K2, FullReverseKL, PolicyGradient
from mopd.distill.types import Full, Sampled, ScoredRollout, TeacherScore

G = {"math": 1.0, "code": 2.0, "order": 0.5}


def tokens(**gaps: list[float]) -> dict[str, DomainTokens]:
    return {name: DomainTokens(np.array(gap), np.array(gap)) for name, gap in gaps.items()}


def drawn(spread: dict[str, float], mean: dict[str, float]) -> dict[str, list[float]]:
    rng = random.Random(0)
    return {d: [rng.gauss(mean[d], spread[d]) for _ in range(50 + 10 * i)] for i, d in enumerate(G)}


def std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))


def test_variance_scaled_is_the_definition() -> None:
    gaps = drawn({"math": 0.3, "code": 1.0, "order": 0.6}, {"math": 0.0, "code": -0.4, "order": 0.1})
    ours = SHARE_RULES["variance_scaled"](G, tokens(**gaps))
    everything = [x for gap in gaps.values() for x in gap]
    assert ours == pytest.approx({d: G[d] * std(everything) / std(gaps[d]) for d in G})
    assert ours["math"] > G["math"] > 0
    assert ours["code"] < G["code"]


def test_gap_following_is_the_definition() -> None:
    gaps = drawn(dict.fromkeys(G, 0.1), {"math": -0.1, "code": -0.5, "order": -0.3})
    ours = SHARE_RULES["gap_following"](G, tokens(**gaps))
    kl = {d: -sum(gap) / len(gap) for d, gap in gaps.items()}
    assert ours == pytest.approx({d: G[d] * kl[d] / (sum(kl.values()) / 3) for d in G})


@pytest.mark.parametrize(
    ("rule", "gaps", "factors"),
    [
        ("explicit", {"math": [9.0, -9.0], "code": [0.0], "order": [-3.0]}, (1, 1, 1)),
        # Six tokens: sigma_all is 9 / sqrt(3), and order's 9.
        ("variance_scaled", {"math": [0.1, -0.1], "code": [0.0, 0.0], "order": [9.0, -9.0]}, (4, 4, 3**-0.5)),
        ("variance_scaled", {"math": [0.01, -0.01] * 400, "code": [0.0] * 400, "order": [9.0, -9.0]}, (4, 4, 0.25)),
        ("variance_scaled", {"math": [1.0], "code": [1.0], "order": [1.0]}, (1, 1, 1)),
        # Chance made code's estimate negative: 0, and the lower bound.
        ("gap_following", {"math": [-0.3], "code": [0.2], "order": [-0.3]}, (1.5, 0.05, 1.5)),
        ("gap_following", {"math": [0.1], "code": [0.0], "order": [0.2]}, (1, 1, 1)),
    ],
)
def test_bounds_and_nothing_to_go_by(rule: str, gaps: dict[str, list[float]], factors: tuple[float, ...]) -> None:
    ours = SHARE_RULES[rule](G, tokens(**gaps))
    for (domain, g), factor in zip(G.items(), factors, strict=True):
        assert ours[domain] == pytest.approx(factor * g, rel=1e-3)


def test_the_upper_bound_of_the_gap_takes_more_than_twenty_domains() -> None:
    gaps = {f"d{i}": [-1e-6] for i in range(40)} | {"far": [-8.0]}
    ours = SHARE_RULES["gap_following"](dict.fromkeys(gaps, 1.0), tokens(**gaps))
    assert ours["far"] == 20
    assert ours["d0"] == 0.05


def sampled(scored: ScoredRollout, reward: float) -> ScoredRollout:
    ids = scored.rollout.token_ids
    ((_, score),) = scored.scores
    assert isinstance(score.payload, Full)
    logprobs = score.payload.logprobs_TV[np.arange(len(ids)), ids]
    anchor = TeacherScore("anchor", Sampled(np.full(len(ids), -2.5, dtype=np.float32)))
    return replace(scored, scores=((0.0, anchor), (1.0, TeacherScore("t", Sampled(logprobs)))), reward=reward)


def test_the_tokens_of_a_step_by_loops() -> None:
    batch = [sampled(scored, float(i)) for i, scored in enumerate(make_batch(seed=3))]
    batch[4] = replace(batch[4], scores=())  # its reward alone
    rewards = [0.5 * i - 1 for i in range(len(batch))]
    loss = PolicyGradient(
        estimator="policy_gradient", reward_weight=0.3, advantage_clip=1.0, extrapolation=1.5, reference="anchor"
    )
    gaps: dict[str, list[float]] = {d: [] for d in DOMAINS}
    advantages: dict[str, list[float]] = {d: [] for d in DOMAINS}
    for i, scored in enumerate(batch):
        for t, trained in enumerate(scored.rollout.loss_mask):
            if trained:
                gap = beyond = 0.0
                if scored.scores:
                    said = [float(score.payload.logprobs_T[t]) for _, score in scored.scores]  # type: ignore[union-attr]
                    gap = said[1] - float(scored.rollout.sampler_logprobs[t])
                    beyond = min(1.0, max(-1.0, gap + 0.5 * (said[1] - said[0])))
                gaps[scored.rollout.domain].append(gap)
                advantages[scored.rollout.domain].append(beyond + 0.3 * rewards[i])
    found = step_tokens(batch, bind(loss), rewards)
    assert found.keys() == set(DOMAINS)
    for d in DOMAINS:
        assert found[d].gap_N.tolist() == pytest.approx(gaps[d], abs=1e-6)
        assert found[d].advantage_N.tolist() == pytest.approx(advantages[d], abs=1e-6)
    unclipped = step_tokens(make_batch(seed=3), bind(FullReverseKL(estimator="full_reverse_kl")), None)
    assert all((one.gap_N == one.advantage_N).all() and abs(one.gap_N).max() > 1 for one in unclipped.values())
    plain = step_tokens(batch, bind(K2(estimator="k2", advantage_clip=1.0)), None)
    assert all(abs(one.advantage_N).max() <= 1 for one in plain.values())


@pytest.mark.parametrize("rule", SHARE_RULES)
def test_an_update_has_the_rules_shares_in_all_of_its_parts(
    models: Path, tmp_path: Path, one: ProcessRanks, rule: str
) -> None:
    """The oracle is a student with explicit shares, told what the rule says of the whole step."""
    batch = make_batch(seed=7, per_domain=6)
    spec = make_spec(make_model(models, "llama"), tmp_path, optimizer=SGD)
    says = SHARE_RULES[rule](SHARES, step_tokens(batch, bind(spec.loss), None))
    told = student(one.start(spec), spec, updates=2, shares=says)
    expected, weights = told.update(batch, step=0), dict(told.weights().state_dict())
    ours = student(one.start(spec), spec, updates=2, rule=rule)
    metrics = ours.update(batch, step=0)
    assert {d: metrics[f"share/{d}"] for d in DOMAINS} == pytest.approx(normalised(says))
    assert metrics == expected
    assert furthest(dict(ours.weights().state_dict()), weights) == 0.0
    changed = [says[d] / SHARES[d] for d in DOMAINS]
    assert (max(changed) > min(changed) * 1.01) == (rule != "explicit")


TWO = {"math": {"task": "arithmetic", "teacher": "math"}, "order": {"task": "ordering", "teacher": "math"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"domains": TWO}, None),
        ({}, "and one domain has the whole loss"),
        (
            {"domains": {**TWO, "order": {"task": "ordering", "reward": True}}},
            "'order' has no teacher to be away",
        ),
        ({"domains": TWO, "loss": {"estimator": "nll"}}, "nll has neither advantages nor a gap"),
    ],
)
def test_a_rule_that_would_do_nothing_is_refused(changes: dict[str, Any], told: str | None) -> None:
    one = recipe(share_rule="gap_following", **changes)
    found = routes_problems(one)
    assert found == [] if told is None else any(told in problem for problem in found)

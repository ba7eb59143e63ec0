"""What is measured on held-out rollouts, by loops over tokens and sets; what a sampler records; what is asked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from batch_kit import V, as_sampled, as_topk, log_softmax, mixed_batch, scored
from check_kit import recipe, routes_problems

from mopd.distill.loss.registry import bind
from mopd.distill.metrics.teacher_distance import distance_metrics
from mopd.distill.payloads import Support
from mopd.distill.recipe import ESTIMATORS
from mopd.distill.types import ScoredRollout, TopK
from mopd.recipes.evaluation.teacher_distance import payload_to_ask
from mopd.rollouts.sampler import GoldSampler, recording

K = 3


def watched(one: ScoredRollout, seed: int) -> ScoredRollout:
    """With the student's likeliest tokens of each position, as a sampler records them."""
    rng = np.random.default_rng(seed)
    own_TV = log_softmax(rng.normal(size=(len(one.rollout.token_ids), V)))
    return replace(one, rollout=replace(one.rollout, support_ids=np.argsort(-own_TV)[:, :K].astype(np.int32)))


def by_loops(batch: list[ScoredRollout]) -> dict[str, float]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for one in batch:
        d = one.rollout.domain
        for t in np.flatnonzero(one.rollout.loss_mask):
            y, said = one.rollout.token_ids[t], float(one.rollout.sampler_logprobs[t])
            theirs = sum(w * float(score.payload.logprobs_TV[t, y]) for w, score in one.scores)  # type: ignore[union-attr]
            shared = 0.0
            for w, score in one.scores:
                row = score.payload.logprobs_TV[t]  # type: ignore[union-attr]
                likely = set(sorted(range(V), key=lambda v: -row[v])[:K])
                shared += w * len(likely & set(one.rollout.support_ids[t].tolist())) / K
            values = {"held_out_kl": said - theirs, "held_out_entropy": -said, "topk_overlap": shared}
            for name, value in values.items():
                sums[f"{name}/{d}"] = sums.get(f"{name}/{d}", 0.0) + value
            counts[d] = counts.get(d, 0) + 1
    return {name: total / counts[name.split("/")[1]] for name, total in sums.items()}


def test_distances_are_means_over_trained_tokens() -> None:
    batch = [watched(one, i) for i, one in enumerate(mixed_batch(7))]
    batch.append(watched(scored(99, "code", teachers=2), 99))
    assert distance_metrics(batch) == pytest.approx(by_loops(batch), abs=1e-6)


def test_what_is_not_known_is_not_told() -> None:
    batch = [watched(one, i) for i, one in enumerate(mixed_batch(5))]
    whole = distance_metrics(batch)
    sampled = distance_metrics([as_sampled(one) for one in batch])
    assert sampled == pytest.approx({name: v for name, v in whole.items() if "overlap" not in name}, abs=1e-6)
    blind = [replace(one, rollout=replace(one.rollout, support_ids=None)) for one in batch]
    assert distance_metrics(blind).keys() == sampled.keys()
    nobody = [replace(one, scores=()) if one.rollout.domain == "math" else one for one in batch]
    assert {name.split("/")[1] for name in distance_metrics(nobody)} == {"code"}
    assert distance_metrics([]) == {}


def test_the_overlap_of_a_shipped_support_is_that_of_the_whole_distribution() -> None:
    batch = [watched(one, i) for i, one in enumerate(mixed_batch(6))]
    topk = [as_topk(one, k=K + 1) for one in batch]
    assert all(isinstance(score.payload, TopK) for one in topk for _, score in one.scores)
    assert distance_metrics(topk) == pytest.approx(distance_metrics(batch), abs=1e-6)


def test_a_student_that_is_its_teacher_overlaps_wholly() -> None:
    batch = []
    for one in mixed_batch(4):
        full_TV = one.scores[0][1].payload.logprobs_TV  # type: ignore[union-attr]
        n = len(one.rollout.token_ids)
        said = full_TV[np.arange(n), one.rollout.token_ids]
        likely = np.argsort(-full_TV)[:, :K].astype(np.int32)
        batch.append(replace(one, rollout=replace(one.rollout, sampler_logprobs=said, support_ids=likely)))
    found = distance_metrics(batch)
    assert {round(v, 6) for name, v in found.items() if "overlap" in name} == {1.0}
    assert {v for name, v in found.items() if "kl" in name} == {0.0}


@pytest.mark.parametrize(
    ("loss", "asked"),
    [
        ({"estimator": "full_reverse_kl"}, "full"),
        ({"estimator": "jsd"}, "full"),
        ({"estimator": "k2"}, "sampled"),
        ({"estimator": "topk_reverse_kl", "k": 64}, "topk"),
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "union"}, "topk"),
        # Asked about the student's own tokens, a teacher does not say which are its likeliest.
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "student"}, "sampled"),
        ({"estimator": "topk_reverse_kl", "k": 4}, "sampled"),
    ],
)
def test_teachers_are_asked_for_what_tells_their_likeliest_tokens(loss: dict[str, object], asked: str) -> None:
    assert payload_to_ask(bind(ESTIMATORS[str(loss["estimator"])].model_validate(loss))) == asked  # type: ignore[arg-type]


def test_gold_answers_have_no_distribution() -> None:
    with pytest.raises(TypeError, match="GoldSampler has no distribution"):
        recording(GoldSampler(lambda answer: [1]), Support(k=K, forced=()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stop": {"kl": 1.0}}, None),
        ({"stop": {"evaluations": 3}}, "`stop.evaluations` is set and would change nothing"),
        ({"stop": {"kl": 1.0}, "evaluate": {"graded_prompts": 0}}, "`stop.kl` is a bound of the held-out KL"),
        ({"stop": {"length": 0.5}, "run": {"steps": 200, "evaluate_every": 150, "save_every": 1}}, None),
        ({"stop": {"length": 0.5, "evaluations": 11}}, "the rule could never fire"),
    ],
)
def test_a_stop_rule_that_could_never_fire_is_refused(changes: dict[str, object], told: str | None) -> None:
    found = routes_problems(recipe(**changes))
    assert found == [] if told is None else any(told in problem for problem in found)


def test_the_estimate_is_the_kl_in_expectation() -> None:
    """Every token of a small vocabulary once, weighed as the student draws it."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(V, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    one = as_sampled(scored(0, "math", prompt=1, answer=1))
    total = 0.0
    for v in range(2, V):
        ids = np.array([one.rollout.token_ids[0], v], dtype=np.int32)
        said = np.array([0.0, p[v]], dtype=np.float32)
        payload = replace(one.scores[0][1].payload, logprobs_T=np.array([0.0, q[v]], dtype=np.float32))
        drawn = replace(
            one,
            rollout=replace(one.rollout, token_ids=ids, sampler_logprobs=said),
            scores=((1.0, replace(one.scores[0][1], payload=payload)),),
        )
        total += math.exp(p[v]) * distance_metrics([drawn])["held_out_kl/math"]
    assert total == pytest.approx(float((p.exp() * (p - q))[2:].sum()), abs=1e-6)

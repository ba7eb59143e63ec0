"""What is measured on held-out rollouts, by loops over tokens and sets; and what teachers are asked for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batch_kit import V, as_sampled, as_topk, log_softmax, mixed_batch, scored
from check_kit import recipe, routes_problems, save_model, tokenizer_of
from transformers import AutoModelForCausalLM

from mopd.distill.loss.registry import bind
from mopd.distill.metrics.teacher_distance import distance_metrics, whole_distances
from mopd.distill.recipe import ESTIMATORS
from mopd.distill.types import ScoredRollout, TopK
from mopd.recipes.evaluation.teacher_distance import payload_to_ask

K = 3


def with_support(graded: ScoredRollout, seed: int) -> ScoredRollout:
    """With the student's likeliest tokens of each position, as a sampler records them."""
    rng = np.random.default_rng(seed)
    own_TV = log_softmax(rng.normal(size=(len(graded.rollout.token_ids), V)))
    return replace(graded, rollout=replace(graded.rollout, support_ids=np.argsort(-own_TV)[:, :K].astype(np.int32)))


def by_loops(batch: list[ScoredRollout]) -> dict[str, float]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for graded in batch:
        d = graded.rollout.domain
        for t in np.flatnonzero(graded.rollout.loss_mask):
            y, logprob = graded.rollout.token_ids[t], float(graded.rollout.sampler_logprobs[t])
            teachers = sum(w * float(score.payload.logprobs_TV[t, y]) for w, score in graded.scores)  # type: ignore[union-attr]
            shared = 0.0
            for w, score in graded.scores:
                row = score.payload.logprobs_TV[t]  # type: ignore[union-attr]
                likely = set(sorted(range(V), key=lambda v: -row[v])[:K])
                shared += w * len(likely & set(graded.rollout.support_ids[t].tolist())) / K
            values = {"held_out_kl": logprob - teachers, "held_out_entropy": -logprob, "topk_overlap": shared}
            for name, value in values.items():
                sums[f"{name}/{d}"] = sums.get(f"{name}/{d}", 0.0) + value
            counts[d] = counts.get(d, 0) + 1
    return {name: total / counts[name.split("/")[1]] for name, total in sums.items()}


def test_distances_are_means_over_trained_tokens() -> None:
    batch = [with_support(graded, i) for i, graded in enumerate(mixed_batch(7))]
    batch.append(with_support(scored(99, "code", teachers=2), 99))
    assert distance_metrics(batch) == pytest.approx(by_loops(batch), abs=1e-6)


def test_what_is_not_known_is_not_told() -> None:
    batch = [with_support(graded, i) for i, graded in enumerate(mixed_batch(5))]
    whole = distance_metrics(batch)
    sampled = distance_metrics([as_sampled(graded) for graded in batch])
    assert sampled == pytest.approx({name: v for name, v in whole.items() if "overlap" not in name}, abs=1e-6)
    blind = [replace(graded, rollout=replace(graded.rollout, support_ids=None)) for graded in batch]
    assert distance_metrics(blind).keys() == sampled.keys()
    nobody = [replace(graded, scores=()) if graded.rollout.domain == "math" else graded for graded in batch]
    assert {name.split("/")[1] for name in distance_metrics(nobody)} == {"code"}
    assert distance_metrics([]) == {}


def test_the_overlap_of_a_shipped_support_is_that_of_the_whole_distribution() -> None:
    batch = [with_support(graded, i) for i, graded in enumerate(mixed_batch(6))]
    topk = [as_topk(graded, k=K + 1) for graded in batch]
    assert all(isinstance(score.payload, TopK) for graded in topk for _, score in graded.scores)
    assert distance_metrics(topk) == pytest.approx(distance_metrics(batch), abs=1e-6)


def test_a_student_that_is_its_teacher_overlaps_wholly() -> None:
    batch = []
    for graded in mixed_batch(4):
        full_TV = graded.scores[0][1].payload.logprobs_TV  # type: ignore[union-attr]
        n = len(graded.rollout.token_ids)
        logprob = full_TV[np.arange(n), graded.rollout.token_ids]
        likely = np.argsort(-full_TV)[:, :K].astype(np.int32)
        batch.append(replace(graded, rollout=replace(graded.rollout, sampler_logprobs=logprob, support_ids=likely)))
    metrics = distance_metrics(batch)
    assert {round(v, 6) for name, v in metrics.items() if "overlap" in name} == {1.0}
    assert {v for name, v in metrics.items() if "kl" in name} == {0.0}


@pytest.mark.parametrize(
    ("loss", "payload"),
    [
        ({"estimator": "full_reverse_kl"}, "full"),
        ({"estimator": "jsd"}, "full"),
        ({"estimator": "skewed_kl"}, "full"),
        ({"estimator": "k2"}, "sampled"),
        ({"estimator": "topk_reverse_kl", "k": 64}, "topk"),
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "union"}, "topk"),
        # Asked about the student's own tokens, a teacher does not say which are its likeliest.
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "student"}, "sampled"),
        ({"estimator": "topk_reverse_kl", "k": 4}, "sampled"),
    ],
)
def test_teachers_are_asked_for_what_tells_their_likeliest_tokens(loss: dict[str, object], payload: str) -> None:
    assert payload_to_ask(bind(ESTIMATORS[str(loss["estimator"])].model_validate(loss))) == payload  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": {"kl": 1.0}}, None),
        ({"stop": {"evaluations": 3}}, "`stop.evaluations` is set and would change nothing"),
        ({"stop": {"kl": 1.0}, "evaluate": {"graded_prompts": 0}}, "`stop.kl` is a bound of the held-out KL"),
        ({"stop": {"length": 0.5}, "run": {"steps": 200, "evaluate_every": 150, "save_every": 1}}, None),
        ({"stop": {"length": 0.5, "evaluations": 11}}, "the rule could never fire"),
    ],
)
def test_a_stop_rule_that_could_never_fire_is_refused(changes: dict[str, object], message: str | None) -> None:
    problems = routes_problems(recipe(**changes))
    assert problems == [] if message is None else any(message in problem for problem in problems)


def test_the_estimate_is_the_kl_in_expectation() -> None:
    """Every token of a small vocabulary once, weighed as the student draws it."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(V, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    graded = as_sampled(scored(0, "math", prompt=1, answer=1))
    total = 0.0
    for v in range(2, V):
        ids = np.array([graded.rollout.token_ids[0], v], dtype=np.int32)
        logprob = np.array([0.0, p[v]], dtype=np.float32)
        payload = replace(graded.scores[0][1].payload, logprobs_T=np.array([0.0, q[v]], dtype=np.float32))
        drawn = replace(
            graded,
            rollout=replace(graded.rollout, token_ids=ids, sampler_logprobs=logprob),
            scores=((1.0, replace(graded.scores[0][1], payload=payload)),),
        )
        total += math.exp(p[v]) * distance_metrics([drawn])["held_out_kl/math"]
    assert total == pytest.approx(float((p.exp() * (p - q))[2:].sum()), abs=1e-6)


def test_whole_distributions_give_the_divergence_itself(tmp_path: Path) -> None:
    """Against a loop over tokens and vocabulary in float64; and its estimate is right on average."""
    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "model", tokenizer_of("arithmetic"))).eval()
    batch = [graded for graded in mixed_batch(6) if graded.scores]
    temperature = 0.7
    student.train()
    distances = whole_distances(student, batch, temperature)
    assert student.training, "it is left as it was"
    student.eval()
    for graded, distance in zip(batch, distances, strict=True):
        ids = torch.from_numpy(graded.rollout.token_ids).long().unsqueeze(0)
        with torch.no_grad():
            rows_TV = student(input_ids=ids).logits[0, :, :V].double() / temperature
        kl = entropy = 0.0
        for t in np.flatnonzero(graded.rollout.loss_mask):
            own_V = rows_TV[t - 1].log_softmax(-1).numpy()
            entropy -= float((np.exp(own_V) * own_V).sum())
            for weight, score in graded.scores:
                theirs_V = score.payload.logprobs_TV[t].astype(np.float64)  # type: ignore[union-attr]
                kl += weight * float((np.exp(own_V) * (own_V - theirs_V)).sum())
        assert (distance.kl, distance.entropy) == pytest.approx((kl, entropy), rel=1e-4)
        assert distance.kl > 0
    whole = {graded.rollout.index: distance for graded, distance in zip(batch, distances, strict=True)}
    metrics = distance_metrics(batch, whole)
    for domain in {graded.rollout.domain for graded in batch}:
        of_domain = [graded for graded in batch if graded.rollout.domain == domain]
        tokens = sum(graded.rollout.trained_tokens for graded in of_domain)
        mean = sum(whole[graded.rollout.index].kl for graded in of_domain) / tokens
        assert metrics[f"held_out_kl/{domain}"] == pytest.approx(mean)


def test_a_certain_student_is_at_no_distance_from_what_it_never_writes() -> None:
    class Certain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            logits = torch.full((*input_ids.shape, V), -torch.inf)
            logits[..., 3] = 0.0
            return SimpleNamespace(logits=logits * self.scale)

    graded = next(graded for graded in mixed_batch(3) if graded.scores)
    (distance,) = whole_distances(Certain(), [graded], 1.0)
    said = [
        weight * float(score.payload.logprobs_TV[graded.rollout.loss_mask, 3].sum())  # type: ignore[union-attr]
        for weight, score in graded.scores
    ]
    assert distance.kl == pytest.approx(-sum(said), rel=1e-5)
    assert distance.entropy == 0.0

"""Hidden states in place of whole distributions: the same update, however the student is spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import _COMMON, DOMAINS, FAMILIES, ProcessRanks, engine_of, furthest, make_batch, make_spec, student
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.heads import HeadSource
from mopd.distill.recipe import FullReverseKL, PlainSGD
from mopd.distill.types import Full, Hidden, Payload, PayloadName, RunError, ScoredRollout, TeacherScore
from mopd.teachers.kinds.checkpoint import TeacherModel

TEMPERATURE = 0.7
STEP = PlainSGD(lr=0.5, warmup_steps=0, clip=0.0, schedule="constant")
HIDDEN = FullReverseKL(payload="hidden")
ROUTES = {"code": {"a": 1.0}, "math": {"a": 0.25, "b": 0.75}, "reasoning": {"b": 1.0}}


def make(folder: Path, family: str, *, seed: int, tied: bool = False) -> str:
    """A tiny random model whose head is large enough for ZeRO-3 to spread it (over 100,000 parameters)."""
    path = folder / f"large-{family}-{seed}-{tied}"
    if not path.exists():
        settings = {**_COMMON, **FAMILIES[family], "vocab_size": 4096, "tie_word_embeddings": tied}
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.dtype == torch.float32 and "inv_freq" not in name:
                    tensor.add_(0.05 * torch.randn_like(tensor))
        model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def teachers(models: Path) -> dict[str, str]:
    """Of other families than the student, one with a head that is tied to its embeddings."""
    return {"a": make(models, "llama", seed=3, tied=True), "b": make(models, "qwen3_moe", seed=4)}


def scored(paths: dict[str, str], payload: PayloadName, routes: dict[str, dict[str, float]] = ROUTES) -> Any:
    """A batch as its teachers grade it; what they say at masked places is spoilt."""
    held = {
        name: TeacherModel(path, device="cpu", dtype="float32", temperature=TEMPERATURE, microbatch_tokens=64)
        for name, path in paths.items()
    }

    def grade(one: ScoredRollout) -> ScoredRollout:
        rollout = one.rollout
        said = {name: held[name].score([rollout.token_ids], payload)[0] for name in routes[rollout.domain]}
        weights = routes[rollout.domain].items()
        return replace(one, scores=tuple((w, TeacherScore(t, spoilt(said[t], ~rollout.loss_mask))) for t, w in weights))

    return [grade(one) for one in make_batch(seed=7)]


def spoilt(payload: Payload, places: np.ndarray) -> Payload:
    assert isinstance(payload, Full | Hidden)
    rows = (payload.logprobs_TV if isinstance(payload, Full) else payload.hidden_TH).copy()
    rows[places] = np.nan
    return Full(rows) if isinstance(payload, Full) else Hidden(rows, payload.head)


def updated(ranks: ProcessRanks, spec: Any, batch: Any, steps: int = 2) -> tuple[dict[str, torch.Tensor], list[Any]]:
    learner = student(ranks.start(spec), spec)
    metrics = [learner.update(batch, step=step) for step in range(steps)]
    return dict(learner.weights().state_dict()), metrics


@pytest.mark.parametrize(
    ("family", "tied", "ranks", "changes"),
    [
        ("mimo_v2_flash", False, "one", {}),
        ("mimo_v2_flash", False, "one", {"packing": True}),
        ("mimo_v2_flash", False, "two", {"gradient_checkpointing": True}),
        ("mimo_v2_flash", False, "two", {"zero_stage": 3, "microbatch_tokens": 40}),
        ("mimo_v2_flash", False, "two", {"expert_parallel": 2}),
        ("mimo_v2_flash", False, "two", {"zero_stage": 3, "expert_parallel": 2}),
        ("llama", True, "two", {}),
        ("llama", True, "two", {"zero_stage": 3}),
        ("llama", True, "one", {"zero_stage": 0}),
    ],
    ids=str,
)
def test_an_update_is_that_of_whole_distributions(
    models: Path,
    tmp_path: Path,
    teachers: dict[str, str],
    request: pytest.FixtureRequest,
    family: str,
    tied: bool,
    ranks: str,
    changes: dict[str, Any],
) -> None:
    """Loss, statistics and weights after two steps of SGD; one domain has two teachers with heads of their own."""
    processes: ProcessRanks = request.getfixturevalue(ranks)
    path = make(models, family, seed=0, tied=tied)
    spec = make_spec(
        path, tmp_path, temperature=TEMPERATURE, optimizer=STEP, engine=engine_of(processes.size, **changes)
    )
    expected, told = updated(processes, spec, scored(teachers, "full"))
    heads = tuple(HeadSource(path, "float32") for path in teachers.values())
    weights, metrics = updated(processes, replace(spec, loss=HIDDEN, heads=heads), scored(teachers, "hidden"))
    assert furthest(weights, expected) < 1e-6
    for ours, theirs in zip(metrics, told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert {f"{name}/{d}" for name in ("kl", "gradient_share", "advantage_share") for d in DOMAINS} <= metrics[0].keys()
    start = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert furthest(expected, dict(start)) > 1e-3


def test_a_teacher_that_is_the_student_gives_no_gradient(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    path = make(models, "mimo_v2_flash", seed=0)
    batch = scored({"a": path}, "hidden", {domain: {"a": 1.0} for domain in DOMAINS})
    spec = make_spec(
        path, tmp_path, temperature=TEMPERATURE, optimizer=STEP, engine=engine_of(2, expert_bias_rate=0), loss=HIDDEN
    )
    weights, (metrics,) = updated(two, replace(spec, heads=(HeadSource(path, "float32"),)), batch, steps=1)
    assert abs(metrics["loss"]) < 1e-7
    assert metrics["grad_norm"] < 1e-6  # the rounding of forwards with other padding
    assert furthest(weights, dict(AutoModelForCausalLM.from_pretrained(path).state_dict())) < 1e-6


def test_hidden_states_of_another_head_are_refused(
    models: Path, tmp_path: Path, one: ProcessRanks, teachers: dict[str, str]
) -> None:
    spec = make_spec(
        make(models, "llama", seed=0), tmp_path, loss=HIDDEN, heads=(HeadSource(teachers["a"], "float32"),)
    )
    with pytest.raises(RunError, match=r"belong to the output head .* its checkpoint was changed during the run"):
        updated(one, spec, scored(teachers, "hidden"))

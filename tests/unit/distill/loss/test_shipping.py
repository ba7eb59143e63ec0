"""What teachers cost: the same tokens however many share them, the bytes that plan and ledger say, and no copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from adapter_kit import make_adapter
from check_kit import recipe, save_model, tokenizer_of
from store_kit import stored
from student_kit import VOCABULARY, make_model, make_rollout

from mopd.distill.loss.registry import bind
from mopd.distill.payloads import Support, likeliest, payload_bytes
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Payload, PayloadName, Rollout, ScoredRollout, TeacherScore
from mopd.recipes.check.model_info import read_model_infos
from mopd.recipes.check.plan.totals import shipped_bytes
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import resolve
from mopd.rollouts.tasks import make_task
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

QWEN_VOCABULARY = 151936
COUNTS = (1, 2, 4, 8)


def rollouts(n: int = 24) -> list[Rollout]:
    rng = np.random.default_rng(0)
    return [make_rollout(rng, i, "math", prompt=3, completion=int(rng.integers(1, 9))) for i in range(n)]


def with_support(rollout: Rollout, support: Support, vocabulary: int) -> Rollout:
    """A rollout whose sampler recorded its likeliest tokens, as the loss asks."""
    logits_TV = torch.randn(len(rollout.token_ids), vocabulary, generator=torch.Generator().manual_seed(rollout.index))
    return replace(rollout, support_ids=likeliest(logits_TV, support).numpy().astype(np.int32))


# ---- tokens: a domain's rollouts go to its teacher, so more teachers on the same rollouts are no more work


def test_eight_routed_teachers_score_as_many_tokens_as_one(cluster: None, tmp_path: Path) -> None:
    def count_tokens(self: Any) -> None:  # nested: a process of Ray's cannot import this file
        def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.seen += int(kwargs["attention_mask"].sum())  # padding is no token

        self.seen = 0
        self._held.scorer.model.register_forward_pre_hook(see, with_kwargs=True)

    def take_count(self: Any) -> int:
        seen, self.seen = self.seen, 0
        return seen

    base = make_model(tmp_path)
    folders = {f"t{i}": make_adapter(base, tmp_path / f"t{i}", seed=i) for i in range(max(COUNTS))}
    pool = TeacherPool(
        {
            name: TeacherSpec(Checkpoint(base, "cpu", "float32"), Conditions(1.0, 64), 0.0, 1, adapter=folder)
            for name, folder in folders.items()
        },
        routes={f"{n}/{i}": {f"t{i}": 1.0} for n in COUNTS for i in range(n)},
        payload="sampled",
        faults=FaultRecipe(),
        say=print,
    )
    pool.wait_until_ready()
    actor = pool._worker_pools["t0"]._replicas[0].actor
    ray.get(actor.__ray_call__.remote(count_tokens))
    costs, tokens = Costs(base, dict.fromkeys(folders, base), writes=True), sum(len(r.token_ids) for r in rollouts())
    for n in COUNTS:
        shared = [replace(r, prompt=replace(r.prompt, domain=f"{n}/{r.index % n}")) for r in rollouts()]
        scored = pool.score([shared[:7], shared[7:]])
        assert ray.get(actor.__ray_call__.remote(take_count)) == tokens
        assert [score.teacher for one in scored for _, score in one.scores] == [f"t{r.index % n}" for r in rollouts()]
        booked = costs.of_step(scored)
        by_teacher = [booked[f"tokens/teacher/{name}"] for name in folders]
        assert sum(by_teacher) == tokens
        assert [count > 0 for count in by_teacher] == [i < n for i in range(max(COUNTS))]
        trained = sum(rollout.trained_tokens for rollout in rollouts())
        assert trained < tokens
        assert sum(booked[f"bytes/teacher/{name}"] for name in folders) == 4 * trained
    pool.close()


# ---- bytes: what a teacher really answers, beside what was planned of it and what is written down


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with the output head of a real vocabulary, which is padded beyond its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return save_model(folder, tokenizer_of("arithmetic"), vocab_size=QWEN_VOCABULARY)


@pytest.mark.parametrize(
    ("loss", "dtype", "per_token"),
    [
        # By hand: 4 bytes a log-probability, 4 an id; of a top-k, which has 3 control tokens, also the
        # rest and the token itself; H = 16.
        ({"estimator": "policy_gradient"}, "float32", 4),
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "teacher"}, "float32", 8 * (64 + 3) + 8),
        ({"estimator": "topk_reverse_kl", "k": 64, "support": "union"}, "float32", 8 * (2 * 64 + 3) + 8),
        ({"estimator": "full_reverse_kl", "payload": "hidden"}, "bfloat16", 2 * 16),
        ({"estimator": "full_reverse_kl", "payload": "full"}, "float32", 4 * QWEN_VOCABULARY),
    ],
    ids=["sampled", "topk", "union", "hidden", "full"],
)
def test_plan_and_ledger_say_what_is_shipped(wide: str, loss: dict[str, Any], dtype: str, per_token: int) -> None:
    made = recipe(
        student={"model": wide}, teachers={"math": {"model": wide, "dtype": dtype}}, stages={}, loss=loss, device="cpu"
    )
    tokenizer = tokenizer_of("arithmetic")
    model_infos, problems = read_model_infos(
        resolve(made), {"math": make_task("arithmetic", domain="math", tokenizer=tokenizer)}
    )
    support, asked = support_of(bind(made.loss), tokenizer), bind(made.loss).payload
    batch = rollouts(3)
    if support is not None and support.given:
        batch = [with_support(rollout, support, QWEN_VOCABULARY) for rollout in batch]
    given = [rollout.support_ids for rollout in batch if rollout.support_ids is not None] or None
    settings: dict[str, Any] = {"device": "cpu", "dtype": dtype, "temperature": 1.0, "microbatch_tokens": 64}
    assert asked is not None
    held = TeacherModel(wide, **settings, support=support)
    said = held.score([rollout.token_ids for rollout in batch], asked, None, given)
    assert problems == []
    assert shipped_bytes(resolve(made).loss, resolve(made).teachers["math"], model_infos) == per_token
    for rollout, payload in zip(batch, said, strict=True):
        assert payload_bytes(payload) == per_token * len(rollout.token_ids)
    scored = [ScoredRollout(r, ((1.0, TeacherScore("math", p)),)) for r, p in zip(batch, said, strict=True)]
    booked = Costs(wide, {"math": wide}, writes=True).of_step(scored)
    assert booked["bytes/teacher/math"] == per_token * booked["tokens/teacher/math"]


# ---- copies: an array that came through Ray's object store is a view of the store's memory


def arrays(payload: Payload) -> list[np.ndarray]:
    return list(payload.arrays().values())


def test_payloads_arrive_as_views_of_the_object_store(cluster: None, tmp_path: Path) -> None:
    support = Support(16, (1,), "union")
    conditions = Conditions(1.0, 4096, support)
    specs = {"a": TeacherSpec(Checkpoint(make_model(tmp_path), "cpu", "float32"), conditions, 0.0, 1)}
    pool = TeacherPool(specs, routes={"math": {"a": 1.0}}, payload="full", faults=FaultRecipe(), say=print)
    rng = np.random.default_rng(0)
    long = [make_rollout(rng, i, "math", prompt=20, completion=100) for i in range(30)]
    batch = [with_support(rollout, support, VOCABULARY) for rollout in long]
    payloads: tuple[PayloadName, ...] = ("full", "hidden", "topk", "sampled")
    for asked in payloads:
        scored = pool.score([batch], asking=asked)
        for array in (array for one in scored for _, score in one.scores for array in arrays(score.payload)):
            assert not array.flags.writeable
            assert not array.flags.owndata
            # One number a token is less than Ray sends through its store: it comes with the answer itself.
            assert stored(array) == (asked != "sampled")
            assert not stored(array.copy())
    pool.close()

"""Teachers in real processes, tried out before the first step: what would teach noise, or untempered, is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import ray.cloudpickle
from student_kit import DOMAINS, VOCABULARY, make_model

from mopd.distill.models.load import load_model
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Int32, Payload, PayloadName, Prompt, Rollout, Sampled, TopK, UserError
from mopd.recipes.run.preflight import FLOOR, Finding, distance, refuse_unusable, trouble
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.dry_run import DryRun
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import sampled_of

TEMPERATURE = 0.5
CONDITIONS = Conditions(TEMPERATURE, microbatch_tokens=64)
DECODING = Decoding(
    max_new_tokens=12, temperature=TEMPERATURE, greedy=False, seed=5, step=0, end_token_ids=(1,), pad_token_id=0
)
Trap = Literal["none", "untempered", "own process"]


@dataclass(frozen=True, slots=True)
class Trapped:
    """A checkpoint with a defect that other systems had."""

    path: str
    trap: Trap

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> Any:
        return Scorer(Checkpoint(self.path, "cpu", "float32").open(conditions, []), self)


def first(folder: str) -> bool:
    """Whether no other process asked before."""
    try:
        (Path(folder) / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Scorer:
    """Scores as a real teacher does, with a defect."""

    def __init__(self, model: TeacherModel, source: Trapped) -> None:
        self.trap, self.vocabulary, self.model = source.trap, model.vocabulary, model
        self.offset = 1.0 if source.trap == "own process" and not first(source.path) else 0.0
        self.reference = model.reference
        self.plain = Checkpoint(source.path, "cpu", "float32").open(Conditions(1.0, 64), [])

    def score(
        self, token_ids: Sequence[Int32], payload: PayloadName, adapter: str | None = None, given: Any = None
    ) -> list[Payload]:
        scored = (self.plain if self.trap == "untempered" else self.model).score(token_ids, "sampled")
        rows = [payload.logprobs_T + np.float32(self.offset) for payload in scored if isinstance(payload, Sampled)]
        return [Sampled(row.astype(np.float32)) for row in rows]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return make_model(folder, "llama", seed=0), make_model(folder, "llama", seed=1)


@pytest.fixture(scope="module")
def rollouts(paths: tuple[str, str]) -> list[Rollout]:
    """What the student of the first path writes."""
    rng = np.random.default_rng(3)
    prompts = [
        Prompt(DOMAINS[0], f"{DOMAINS[0]}/{i}", tuple(rng.integers(2, VOCABULARY, 4).tolist()), "?", "!")
        for i in range(6)
    ]
    sampler = StudentSampler(DECODING, samples_per_prompt=1, batch_size=6)
    sampler.load_weights(InProcess(load_model(paths[0], device="cpu", dtype="float32")), version=0)
    return [rollout for microbatch in sampler.sample(prompts, step=0) for rollout in microbatch]


@pytest.fixture(scope="module")
def trials(cluster: None, paths: tuple[str, str], rollouts: list[Rollout]) -> Iterator[dict[str, DryRun]]:
    """A teacher with each defect, in processes of its own."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    traps: tuple[Trap, ...] = ("none", "untempered", "own process")
    specs = {
        trap: TeacherSpec(Trapped(paths[1], trap), CONDITIONS, gpus=0.0, replicas=2 if trap == "own process" else 1)
        for trap in traps
    }
    pool = TeacherPool(
        specs, routes={DOMAINS[0]: dict.fromkeys(traps, 1 / 3)}, payload="sampled", faults=FaultRecipe(), say=print
    )
    pool.wait_until_ready()
    yield {trap: pool.dry_run(trap, rollouts) for trap in traps}
    pool.close()


@pytest.mark.parametrize(
    ("trap", "reason"),
    [
        ("none", None),
        ("untempered", "nats from its own distribution at the recipe's temperature"),
        ("own process", "asked twice in each of its 2 processes, it scores the same tokens"),
    ],
)
def test_scores_that_would_mislead_are_found(
    trials: dict[str, DryRun], rollouts: list[Rollout], trap: str, reason: str | None
) -> None:
    assert len(trials[trap].answers) == (4 if trap == "own process" else 2)
    problem = trouble(trials[trap], rollouts, 1e-3)
    assert (problem is None) == (reason is None)
    assert reason is None or (problem is not None and reason in problem[0] and problem[1])


def test_answers_may_differ_by_less_than_a_tenth_of_the_distance_to_the_student(rollouts: list[Rollout]) -> None:
    student = [rollout.sampler_logprobs for rollout in rollouts]

    def shifted(by: float) -> tuple[Any, ...]:
        return tuple(row + np.float32(by) for row in student)

    assert trouble(DryRun((shifted(0.5), shifted(0.54)), None), rollouts, 1e-3) is None
    problem = trouble(DryRun((shifted(0.5), shifted(0.56)), None), rollouts, 1e-3)
    assert problem is not None
    assert problem[0] == "asked twice, it scores the same tokens 0.06 nats apart, and is 0.5 nats from the student"
    assert trouble(DryRun((shifted(0), shifted(FLOOR / 2)), None), rollouts, 1e-3) is None  # an anchor
    assert trouble(DryRun((shifted(0), shifted(float("nan"))), None), rollouts, 1e-3) is not None


def test_every_payload_that_tells_its_tokens_log_probabilities_is_read(tmp_path: Path) -> None:
    from mopd.distill.payloads import Support

    model = TeacherModel(
        make_model(tmp_path, "llama"), device="cpu", dtype="float32", temperature=0.5, microbatch_tokens=64,
        support=Support(4, (0, 1)),
    )  # fmt: skip
    ids = np.arange(2, 14, dtype=np.int32)
    plain, full, top = (model.score([ids], name)[0] for name in ("sampled", "full", "topk"))
    assert isinstance(top, TopK)
    for payload in (full, top):
        np.testing.assert_array_equal(sampled_of(payload, ids), sampled_of(plain, ids))
    np.testing.assert_allclose(
        sampled_of(plain, ids)[1:],
        [model.reference(ids)[t, ids[t]] for t in range(1, len(ids))],
        atol=2e-5,
    )


def test_unusable_teachers_are_refused_together() -> None:
    findings = [
        Finding("a", "math", "unusable", "KL to it is inf", "take another"),
        Finding("b", "code", "warning", "far"),
    ]
    refuse_unusable(findings[1:])  # not per token
    with pytest.raises(
        UserError, match=r"`teachers\.a` cannot teach domain 'math': KL to it is inf; take another"
    ) as refused:
        refuse_unusable(findings)
    assert len(refused.value.problems) == 1


def test_the_distance_is_the_divergence_within_the_error_that_it_tells() -> None:
    """A student writes tokens by its distribution p, a teacher scores them by q: 95% of intervals hold KL(p || q)."""
    rng = np.random.default_rng(0)
    n, repetitions, hits = 300, 400, 0
    p_V, q_V = (rng.dirichlet(np.ones(6)) for _ in range(2))
    exact = float((p_V * (np.log(p_V) - np.log(q_V))).sum())
    for _ in range(repetitions):
        ids_T = rng.choice(6, n + 2, p=p_V).astype(np.int32)
        mask_T = np.arange(n + 2) >= 2
        prompt = Prompt("math", "math/0", tuple(ids_T[:2].tolist()), "?", "!")
        student_T, teacher_T = (np.log(probabilities)[ids_T].astype(np.float32) for probabilities in (p_V, q_V))
        teacher_T[0] = np.nan  # what precedes the completion is not looked at
        rollout = Rollout(prompt, ids_T, mask_T, student_T, "length", (0, 0), 0, 0)
        kl, error = distance(DryRun(((teacher_T,), (teacher_T,)), None), [rollout])
        hits += abs(kl - exact) < 1.96 * error
    assert 0.92 < hits / repetitions < 0.975

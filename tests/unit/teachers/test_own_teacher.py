"""A user's own teacher, ``scorer: ./file.py:NAME``: it teaches like a shipped one, and what it lacks is told first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import check, problems, recipe, save_model, tokenizer_of
from own_page_kit import example
from student_kit import VOCABULARY, make_rollout

from mopd.distill.payloads import Support, top_k
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Float32, Full, GradingFailed, Rollout, TopK
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.run.check_deep import deep_findings
from mopd.teachers.actor import TeacherSpec, canary
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.kinds.custom import CustomSource
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import Expected, check_score, sampled_of

BLEND = example("A teacher")
"""The example of the documentation."""
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one tokenizer, and the example that blends them."""
    made = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        save_model(made / name, tokenizer_of("arithmetic", "list_programs", "ordering"), initializer_range=0.5)
    (made / "blend.py").write_text(BLEND.replace("./checkpoints/other", str(made / "other")))
    return made


def rollouts(*, given: int = 0) -> list[Rollout]:
    rng = np.random.default_rng(0)
    made = [make_rollout(rng, index, "math", prompt=3, completion=4 + index) for index in range(3)]
    if not given:
        return made
    rows = [[rng.choice(VOCABULARY, given, replace=False) for _ in rollout.token_ids] for rollout in made]
    return [
        replace(rollout, support_ids=np.array(ids, dtype=np.int32)) for rollout, ids in zip(made, rows, strict=True)
    ]


def expected(folder: Path, ids_T: np.ndarray) -> Float32:
    """The blend by its definition: the mean of two probabilities."""
    both = [
        TeacherModel(
            folder / name, device="cpu", dtype="float32", temperature=TEMPERATURE, microbatch_tokens=64
        ).reference(ids_T)
        for name in ("one", "other")
    ]
    return np.log((np.exp(both[0]) + np.exp(both[1])) / 2).astype(np.float32)


TOP = """
from mopd.teachers.kinds.checkpoint import TeacherModel
class Top(TeacherModel):
    payloads = ("topk",)
    def __init__(self, model, *, device, dtype, conditions):
        how = {"temperature": conditions.temperature, "microbatch_tokens": conditions.microbatch_tokens}
        super().__init__(model, device=device, dtype=dtype, support=conditions.support, **how)
    def score(self, token_ids, payload, adapter=None, given=None):
        assert token_ids and payload == "topk"
        return super().score(token_ids, payload, adapter, given)
"""


def blend(folder: Path) -> CustomSource:
    return CustomSource.of(f"{folder}/blend.py:Blend", str(folder / "one"), "cpu", "float32")


def test_the_documented_one_scores_as_it_says(cluster: None, folder: Path) -> None:
    pool = TeacherPool(
        {"blend": TeacherSpec(blend(folder), Conditions(TEMPERATURE, 64), gpus=0.0, replicas=1)},
        routes={"math": {"blend": 1.0}},
        payload="full",
        faults=FaultRecipe(),
        say=print,
    )
    pool.wait_until_ready()
    for scored in pool.score([rollouts()]):
        answer = scored.scores[0][1].payload
        assert isinstance(answer, Full)
        expected_NV = expected(folder, scored.rollout.token_ids)[scored.rollout.loss_mask]
        np.testing.assert_allclose(answer.logprobs_TV, expected_NV, atol=1e-4)
    pool.close()


@pytest.mark.parametrize("whose", ["teacher", "student", "union"])
def test_less_is_made_of_the_more_that_it_gives(folder: Path, whose: Any) -> None:
    support = Support(4, (1, 2), whose)
    batch = rollouts(given=6 if support.given else 0)
    ids = [rollout.token_ids for rollout in batch]
    given = [rollout.support_ids for rollout in batch if rollout.support_ids is not None] or None
    opened = blend(folder).open(Conditions(TEMPERATURE, 64, support), [])
    for answer, sampled, rollout in zip(
        opened.score(ids, "topk", None, given), opened.score(ids, "sampled"), batch, strict=True
    ):
        check_score("blend", rollout, answer, Expected("topk", opened.vocabulary, support))
        assert isinstance(answer, TopK)
        full_TV = expected(folder, rollout.token_ids)
        student_ids = None if rollout.support_ids is None else torch.from_numpy(rollout.support_ids.astype(np.int64))
        ids_TK, likely_TK, rest_T = (
            tensor.numpy() for tensor in top_k(torch.from_numpy(full_TV), support, student_ids)
        )
        np.testing.assert_array_equal(answer.ids_TK[1:], ids_TK[1:])
        np.testing.assert_allclose(answer.logprobs_TK[1:], likely_TK[1:], atol=1e-4)
        np.testing.assert_allclose(answer.rest_T[1:], rest_T[1:], atol=1e-4)
        own_T = np.take_along_axis(full_TV, rollout.token_ids[:, None].astype(np.int64), 1)[:, 0]
        for payload in (answer, sampled):
            np.testing.assert_allclose(sampled_of(payload, rollout.token_ids)[1:], own_T[1:], atol=1e-4)


def tree(folder: Path, scorer: str = "blend.py:Blend", **changes: Any) -> dict[str, Any]:
    teacher = {"model": str(folder / "one"), "scorer": scorer if scorer.startswith(".") else f"{folder}/{scorer}"}
    return {
        "student": {"model": str(folder / "other")},
        "teachers": {"math": teacher | changes.pop("teacher", {})},
        "stages": {},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 20},
    } | changes


def changed(old: str, new: str) -> str:
    assert old in BLEND
    return BLEND.replace(old, new)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no file": (BLEND, {"scorer": "./nowhere.py:Blend"}, "and there is no file"),
    "no class": (BLEND, {"scorer": "blend.py:np"}, "must be a class with a method `score`"),
    "a word": (BLEND, {"teacher": {"scorer": "blend"}}, "write ./file.py:NAME"),
    "no payloads": (changed('payloads = ("full",)', ""), {}, "has payloads None, and must have a tuple of some of"),
    "a payload of its own": (changed('("full",)', '("logits",)'), {}, "has payloads ('logits',)"),
    "less than the loss needs": (changed('"full",', '"sampled",'), {}, "gives sampled, and `loss.estimator`"),
    "the top k of no support": (
        changed('"full",', '"topk",'),
        {"loss": {"estimator": "policy_gradient"}},
        "gives topk, and `loss.estimator` policy_gradient needs sampled",
    ),
    "no head": (BLEND, {"loss": {"estimator": "full_reverse_kl", "payload": "hidden"}}, "take `payload: full`"),
    "an adapter": (BLEND, {"teacher": {"adapter": "./a"}}, "loads what it scores with"),
    "a writer": (BLEND, {"method": "off_policy", "loss": {"estimator": "nll"}}, "and it only scores"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_lacks_is_told_before_the_run(name: str, folder: Path, tmp_path: Path) -> None:
    source, changes, message = REFUSED[name]
    (tmp_path / "blend.py").write_text(source)
    for model in ("one", "other"):
        (tmp_path / model).symlink_to(folder / model)
    assert message in " ".join(problems(tmp_path / "out", **tree(tmp_path, **changes)))


def test_a_sound_one_passes_and_is_tried_out(folder: Path, tmp_path: Path) -> None:
    sound = recipe(**tree(folder))
    plan = check(sound, tmp_path / "out")
    assert f"scored by {folder}/blend.py:Blend" in plan.models[0].made
    (finding,) = deep_findings(resolve(sound), tmp_path / "out")
    assert finding.verdict in ("usable", "warning")
    assert finding.reason.startswith("KL ")
    assert finding.reason.endswith("it only scores, so it was not asked")


WRONG: dict[str, tuple[str, str, str]] = {
    "one that raises": (
        "halves = zip(", "raise OSError('no such disk'); halves = zip(", "it raises OSError: no such disk"
    ),
    "one in float64": ("np.float32(2)", "np.float64(2)", "gave logprobs_TV in float64"),
    "one of too few": ("in halves]", "in halves][1:]", "it owes one for each, in order"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_its_answers_is_a_finding(name: str, folder: Path, tmp_path: Path) -> None:
    old, new, message = WRONG[name]
    (tmp_path / "blend.py").write_text(changed(old, new).replace("./checkpoints/other", str(folder / "other")))
    for model in ("one", "other"):
        (tmp_path / model).symlink_to(folder / model)
    (finding,) = deep_findings(resolve(recipe(**tree(tmp_path))), tmp_path / "out")
    assert finding.verdict == "unusable"
    assert message in finding.reason


@pytest.mark.parametrize("whose", ["teacher", "student", "union"])
def test_one_that_gives_its_top_k_alone_is_tried_out_on_the_loss_support(
    whose: Any, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "top.py").write_text(TOP)
    loss = {"estimator": "topk_reverse_kl", "k": 4, "support": whose}
    named = tree(folder, teacher={"scorer": f"{tmp_path}/top.py:Top"}, loss=loss)
    (finding,) = deep_findings(resolve(recipe(**named)), tmp_path / "out")
    assert finding.verdict in ("usable", "warning")
    conditions = Conditions(1.0, 64, Support(4, (1, 2), whose))
    opened = CustomSource.of(f"{tmp_path}/top.py:Top", str(folder / "one"), "cpu", "float32").open(conditions, [])
    said_T = canary(opened, None, conditions)
    assert said_T is not None
    assert np.isfinite(said_T).all()


def test_it_is_asked_for_nothing_with_nothing_and_a_changed_file_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "top.py").write_text(TOP)
    own = CustomSource.of(f"{tmp_path}/top.py:Top", str(folder / "one"), "cpu", "float32")
    assert own.open(Conditions(1.0, 64), []).score([], "sampled") == []
    (tmp_path / "top.py").write_text(TOP + "# another\n")
    with pytest.raises(GradingFailed, match="was changed during the run"):
        own.open(Conditions(1.0, 64), [])


def test_tokens_of_the_students_that_are_left_out_are_noticed() -> None:
    rollout = rollouts(given=3)[0]
    assert rollout.support_ids is not None
    n, ids_TK = len(rollout.token_ids), rollout.support_ids.copy()
    answer = TopK(ids_TK, np.zeros((n, 3), np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32))
    expected = Expected("topk", VOCABULARY, Support(3, (), "student"))
    check_score("own", rollout, answer, expected)
    ids_TK[-1, 0] = (ids_TK[-1].max() + 1) % VOCABULARY
    with pytest.raises(GradingFailed, match="left out tokens that it was given"):
        check_score("own", rollout, answer, expected)

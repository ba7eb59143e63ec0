"""What a wrong recipe is told: a plain sentence that names the key, what it has and what was needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_kit import SMALL, load, refused

from mopd.distill.recipe.messages import nearest
from mopd.distill.types import UserError


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=-1", "`run.steps` must be at least 1; it is -1"),
        ("seed=9223372036854775808", "`seed` must be at most 9,223,372,036,854,775,807"),
        ("evaluate.seed=9223372036854775808", "`evaluate.seed` must be at most 9,223,372,036,854,775,807"),
        ("run.steps=1.5", "`run.steps` must be a whole number; it is 1.5"),
        ("run.steps=true", "`run.steps` must be a whole number; it is true"),
        ("run.steps='3'", "`run.steps` must be a whole number; it is the text '3'"),
        ("student.optimizer.lr=0", "`student.optimizer.lr` must be from 1e-09 to 100 (float32 weights are"),
        ("student.optimizer.lr=.inf", "`student.optimizer.lr` must be a finite number; it is inf"),
        ("student.optimizer.betas=[0.9]", "`student.optimizer.betas[1]` is missing"),
        ("student.optimizer.betas=[0.9, 0.9, 0.9]", "`student.optimizer.betas` must be a list of 2"),
        ("student.optimizer.betas=[0.9, 1]", "`student.optimizer.betas[1]` must be less than 1"),
        ("student.optimizer={name: adam}", "did you mean `adamw`? known: adamw, sgd"),
        ("student.optimizer={name: sgd, eps: 1.0e-6}", "`student.optimizer` has `eps`, which AdamW reads"),
        ("student.optimizer={name: sgd, betas: [0.9, 0.9]}", "`student.optimizer` has `betas`, which AdamW reads"),
        (
            "student.optimizer={name: sgd, momentum: 0.9}",
            "unknown key `student.optimizer.momentum`; known here: lr",
        ),
        ("student.optimizer={schedule: constant, final_lr_fraction: 0.5}", "a constant schedule has no end"),
        ("student.engine=[]", "`student.engine` must be a mapping of keys"),
        ("rollout.temperature=0", "`rollout.temperature` must be from 0.01 to 100 (below, rounding"),
        ("domains.math.share=.nan", "`domains.math.share` must be a finite number; it is nan"),
        ("domains.math.share=-1", "`domains.math.share` must be from 1e-06 to 1e+06 (beyond"),
        ("domains.math.task=3", "`domains.math.task` must be text; it is 3"),
        ("domains.math.task={pth: x}", "did you mean `domains.math.task.path`"),
        ("domains.math.teachers={math: 1}", "`domains.math` has both `teacher` and `teachers`"),
        ("domains.more={task: a, teachers: {a: .5, b: .4}}", "weights that sum to 0.9; they must sum to 1"),
        ("domains.math.evaluate_only=true", "`domains.math` is evaluate_only, so it takes neither"),
        ("domains.a/b={task: arithmetic}", "`domains.a/b` is not a usable name"),
        ("method=mop", "did you mean `mopd`? known: mopd, mix_rl"),
        ("method=own.py:METHOD", "or ./file.py:NAME of your own"),
        ("rollout.engine=in_proces", "did you mean `in_process`"),
        ("teachers.math.kind=serve", "did you mean `served`? known: checkpoint, served, custom"),
        ("teachers.math.kind=served", "`teachers.math` is of kind served, which needs `endpoint`"),
        ("teachers.math.kind=custom", "`teachers.math` is of kind custom, which needs `scorer`"),
        ("teachers.math={model: ./m, kind: checkpoint, scorer: ./s.py:S}", "remove `scorer`"),
        ("teachers.math.settings={a: 1}", "`teachers.math` has `settings`, which only a `kind` of your own reads"),
        ("track.sinks=[wandb]", "known: tensorboard, trackio, mlflow, aim, comet_ml, "),
        ("device=gpu", "known: auto, cpu, cuda"),
        ("loss=nll", "`loss` must be a mapping such as {estimator: full_reverse_kl}"),
        ("loss={estimator: full_reverse_kal}", "did you mean `full_reverse_kl`"),
        ("loss={estimator: k3_backprop}", "is a trap: back-propagating k3 gives the forward KL"),
        ("loss={estimator: policy_gradient, gate: [5, 0.2]}", "`loss.gate` is inverted: [5, 0.2]"),
        ("loss={estimator: jsd, beta: 1.5}", "`loss.beta` must be 0, or 1, or from 0.0001 to 0.9999"),
        ("loss={estimator: topk_reverse_kl, k: 0}", "`loss.k` must be at least 1; it is 0"),
        ("loss={estimator: topk_reverse_kl, support: both}", "known: teacher, student, union"),
        ("loss={estimator: k2, gate: [5, 0.2]}", "`loss.gate` is inverted: [5, 0.2]"),
        ("loss={estimator: full_reverse_kl, gate: [1, 2]}", "`loss.gate`; known here: token_bound, estimator, payload"),
        ("name=a/b", "`name` is not a usable name"),
    ],
)
def test_a_wrong_value_is_told_in_a_plain_sentence(tmp_path: Path, override: str, expected: str) -> None:
    message = refused(tmp_path, SMALL, override)
    assert expected in message
    for jargon in ("Input should", "pydantic", "validation error", "<", "tag"):
        assert jargon not in message.split(f"command line, {override}: ")[1]


def test_a_setting_of_another_estimator_is_unknown(tmp_path: Path) -> None:
    expected = "unknown key `loss.reward_weight`; known here: advantage_clip, gate, extrapolation, reference, estimator"
    assert expected in refused(tmp_path, SMALL, "loss={estimator: k2, reward_weight: 1}")


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    text = SMALL + "run: {steps: -1, stepz: 3}\nseed: one\n"
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert len(caught.value.problems) == 3
    assert all("recipe.yaml: " in problem for problem in caught.value.problems)


def test_a_recipe_without_domains_is_refused(tmp_path: Path) -> None:
    assert "`domains` is missing" in refused(tmp_path, "name: x\nstudent: {model: ./a}\n")
    assert "`domains` is empty" in refused(tmp_path, "name: x\nstudent: {model: ./a}\ndomains: {}\n")


def test_nearest_is_none_where_nothing_is_alike() -> None:
    assert nearest("steps", ["stages", "step"]) == "step"
    assert nearest("zzz", ["stages", "step"]) is None

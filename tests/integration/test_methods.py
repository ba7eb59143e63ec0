"""Methods other than mopd from the command line: by reward, and from what teachers write; stages by reward."""

import json
from pathlib import Path

import pytest
from runs import assert_whole, rows, run

SMALL = [
    "run={steps: 2, evaluate_every: 2, save_every: 2}",
    "evaluate={validation_prompts: 4, test_prompts: 8}",
    "student.optimizer.warmup_steps=0",
    "student.updates_per_step=1",
    "stages.base.steps=2",
    "stages.base.optimizer.warmup_steps=0",
]
BY_REWARD = [
    *(f"domains.{name}.teacher=null" for name in ("math", "code", "reasoning")),
    *(f"domains.{name}.reward=true" for name in ("math", "code", "reasoning")),
    *(f"teachers.{name}=null" for name in ("math", "code", "reasoning")),
    *(f"stages.{name}=null" for name in ("math", "code", "reasoning")),
    "rollout.samples_per_prompt=2",
]
STAGES_BY_REWARD = [
    *(f"stages.math.{leaf}" for leaf in ("method=expert_iteration", "samples_per_prompt=4", "keep_verified=2")),
    *(f"stages.code.{leaf}" for leaf in ("method=mix_rl", "samples_per_prompt=2")),
    *(f"stages.{name}.{leaf}" for name in ("math", "code") for leaf in ("steps=1", "optimizer.warmup_steps=0")),
    "stages.reasoning=null",
    "teachers.reasoning.model=stage:math",
]

STAGES = [f"stages.{name}.{leaf}" for name in ("math", "code") for leaf in ("steps=1", "optimizer.warmup_steps=0")]
STAGES += ["stages.reasoning=null", "teachers.reasoning.model=stage:math"]


def trained(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.fixture(scope="module")
def off_policy(tmp_path_factory):
    out = tmp_path_factory.mktemp("off_policy") / "run"
    run("run", "smoke", "method=off_policy", "loss.estimator=nll", *SMALL, *STAGES_BY_REWARD, "--out", out)
    return out


def test_teachers_write_and_the_student_learns_it(off_policy):
    assert_whole(off_policy, steps=2)
    assert set(json.loads((off_policy / "seesaw.json").read_text())["models"]) == {
        "base",
        "student",
        *(f"teachers/{name}" for name in ("math", "code", "reasoning")),
    }
    for row in trained(off_policy):
        assert row["loss"] > 0
        assert row["tokens/generation"] == row["tokens/update"] > 0
        assert not any(name.startswith("kl/") for name in row)
    roles = json.loads((off_policy / "ledger.json").read_text())["roles"]
    assert roles["generation"]["flops"] > 0


def test_teachers_write_and_grade_whole_distributions(tmp_path):
    out = tmp_path / "run"
    run("run", "smoke", "method=supervised_distillation", "loss.estimator=forward_kl", *SMALL, *STAGES, "--out", out)
    assert_whole(out, steps=2)
    for row in trained(out):
        assert row["off_policy/math"] == row["off_policy/code"] == row["off_policy/reasoning"] == 1
        assert row["kl/math"] > 0
        assert row["tokens/teacher/math"] > 0


def test_teachers_answer_a_part_of_the_prompts_in_the_first_steps(tmp_path):
    out, mixture = tmp_path / "run", ["rollout.off_policy=0.5", "rollout.off_policy_steps=1"]
    run("run", "smoke", *mixture, *SMALL, *STAGES, "--out", out)
    assert_whole(out, steps=2)
    first, second = trained(out)
    assert all(0 < first[f"off_policy/{name}"] < 1 for name in ("math", "code", "reasoning"))
    assert not any(name.startswith("off_policy/") for name in second)


def test_of_what_teachers_write_verified_answers_are_learnt(tmp_path):
    out, rewards = tmp_path / "run", [f"domains.{name}.reward=true" for name in ("math", "code", "reasoning")]
    how = ["method=rejection_sampling", "loss={estimator: nll}", "rollout.samples_per_prompt=4"]
    run("run", "smoke", *how, "rollout.keep_verified=2", *rewards, *SMALL, *STAGES, "--out", out)
    assert_whole(out, steps=2)
    for row in trained(out):
        assert row["tokens/generation"] > row["tokens/update"]
        assert 0 <= row["kept/math"] <= row["reward/math"] <= 1
        assert row["off_policy/math"] == 1


def test_stages_learn_by_reward(off_policy):
    """Two-step bases are rarely right: what is graded is all written, and what is kept is what was learnt."""
    (math,), (code,) = (trained(off_policy / "stages" / name) for name in ("math", "code"))
    assert math["tokens/generation"] > math["tokens/update"] >= 0
    assert 0 <= math["kept/math"] <= math["reward/math"] <= 1
    assert code["tokens/generation"] == code["tokens/update"]
    assert 0 <= code["reward/code"] <= 1
    roles = json.loads((off_policy / "ledger.json").read_text())["roles"]
    assert roles["stage/math/generation"]["tokens"] == math["tokens/generation"]


def test_reward_learning_on_all_domains_at_once(tmp_path):
    loss = "loss={estimator: policy_gradient, reward_weight: 1.0}"
    run("run", "smoke", "method=mix_rl", loss, *SMALL, *BY_REWARD, "--out", tmp_path / "run")
    assert_whole(tmp_path / "run", steps=2)
    seesaw = json.loads((tmp_path / "run" / "seesaw.json").read_text())
    assert set(seesaw["models"]) == {"base", "student"}
    assert all(f"reward/{name}" in row for row in trained(tmp_path / "run") for name in ("math", "code", "reasoning"))


UNTRAINED = ["run=null", "student.optimizer=null", "student.updates_per_step=null", SMALL[1], *SMALL[-2:]]


def test_the_student_of_a_cascade_is_the_end_of_a_chain_of_which_every_link_is_measured(tmp_path):
    chain = ["student.model=stage:code", "stages.code.from=stage:math", "teachers=null"]
    asked = [f"domains.{name}.teacher=null" for name in ("math", "code", "reasoning")]
    stages = [one for one in STAGES_BY_REWARD if not one.startswith("teachers.")]
    out = tmp_path / "run"
    run("run", "smoke", "method=cascade", *UNTRAINED, *stages, *chain, *asked, "--out", out)
    seesaw = json.loads((out / "seesaw.json").read_text())
    assert set(seesaw["models"]) == {"base", "student"}
    assert [point["step"] for point in seesaw["curve"]] == [1, 2], "after each link of one step"
    chosen = out / "stages" / ("math" if seesaw["selected"]["step"] == 1 else "code") / "student"
    assert (out / "student" / "model.safetensors").read_bytes() == (chosen / "model.safetensors").read_bytes()


def test_a_merge_tries_every_strength_on_validation_and_tests_the_best(tmp_path):
    out = tmp_path / "run"
    how = "merge={how: task_arithmetic, strengths: [0.5, 1.0]}"
    run("run", "smoke", "method=merge", how, *UNTRAINED, *STAGES_BY_REWARD, "--out", out)
    seesaw = json.loads((out / "seesaw.json").read_text())
    assert {"base", "student", "teachers/math", "teachers/code"} <= set(seesaw["models"])
    asked = {(row["model"], row["split"]) for row in rows(out / "evaluations.jsonl")}
    assert {("candidates/0.5", "validation"), ("candidates/1", "validation"), ("student", "test")} <= asked
    assert not {("candidates/0.5", "test"), ("candidates/1", "test")} & asked
    (told,) = (row for row in rows(out / "metrics.jsonl") if row["kind"] == "eval")
    best = out / "candidates" / f"{told['merge_strength']:g}" / "model.safetensors"
    assert (out / "student" / "model.safetensors").read_bytes() == best.read_bytes()

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

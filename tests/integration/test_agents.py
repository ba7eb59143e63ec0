"""The shipped recipe `agents` in a few steps: episodes are learnt, played, measured and shown; killed and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import ONE_SPECIALIST, assert_whole, finish, kill, mopd, rows, run, texts, wait_for, weights

ACTING = ["math", "code"]
SMALL = [
    "run={steps: 4, plateau: null, evaluate_every: 2, save_every: 2}",
    "student.optimizer={warmup_steps: 1, decay_steps: 2}",
    "evaluate={validation_prompts: 4, test_prompts: 8}",
    "student.engine={ranks: 1, zero_stage: 0}",
    *(f"stages.{name}={{steps: 2, optimizer: {{warmup_steps: 0}}}}" for name in ("first", "base")),
    *(f"domains.{name}.prompts=4" for name in (*ACTING, "reasoning")),
    "stages.math={steps: 2, domains: null, optimizer: {warmup_steps: 0, decay_steps: 1}}",
    *ONE_SPECIALIST,
]


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "agents"
    run("run", "agents", *SMALL, "--out", out)
    return out


def test_episodes_are_learnt_played_measured_and_shown(agents: Path) -> None:
    assert_whole(agents, steps=4)
    for stage in ("base", "math"):  # before them the base learns orders alone
        written = [row for row in rows(agents / "stages" / stage / "metrics.jsonl") if row["kind"] == "train"]
        assert written
        for row in written:
            assert [row[f"episode_reward/{name}"] for name in ACTING] == [1.0, 1.0], "scripts are right"
            assert row["turns/math"] > 1
    trained, measured = (
        [row for row in rows(agents / "metrics.jsonl") if row["kind"] == kind] for kind in ("train", "eval")
    )
    assert all(row[f"kl/{name}"] > 0 for row in trained for name in (*ACTING, "reasoning"))
    assert all(row[f"turns/{name}"] >= 1 for row in (*trained, *measured) for name in ACTING)
    assert all(row["turns_per_minute"] > 0 for row in measured)
    seesaw = json.loads((agents / "seesaw.json").read_text())
    assert {model: list(of) for model, of in seesaw["episodes"].items()} == dict.fromkeys(seesaw["models"], ACTING)
    for model, scores in seesaw["models"].items():
        for name in ACTING:
            assert seesaw["episodes"][model][name]["solved"] == scores[name], "a reward is 0 or 1"
    page = (agents / "report.html").read_text()
    assert "Episodes of environments" in page
    assert "turns a minute" in page


def test_a_killed_run_of_agents_goes_on_to_the_same_weights(agents: Path, tmp_path: Path) -> None:
    """Killed in a stage, and in the run after its first checkpoint."""
    out = tmp_path / "killed"
    for path, lines in ((out / "stages" / "math" / "metrics.jsonl", 1), (out / "metrics.jsonl", 4)):
        process = mopd("run", "agents", *SMALL, "--out", out)
        wait_for(process, path, lines)
        kill(process)
    code, printed = finish(mopd("run", "agents", *SMALL, "--out", out))
    assert code == 0, printed
    assert_whole(out, steps=4)
    assert weights(out) == weights(agents)
    assert texts(out) == texts(agents)
    assert json.loads((out / "seesaw.json").read_text()) == json.loads((agents / "seesaw.json").read_text())


def test_the_student_goes_on_where_teacher_and_script_have_begun(agents: Path, tmp_path: Path) -> None:
    out = tmp_path / "prefixes"
    shutil.copytree(agents / "stages", out / "stages")
    begun = ["domains.math.prefix={teacher: 0.5, student: 0.5}", "domains.code.prefix=dataset"]
    run("run", "agents", *SMALL, *begun, "--out", out)
    trained, whole = ([row for row in rows(f / "metrics.jsonl") if row["kind"] == "train"] for f in (out, agents))
    for row, other in zip(trained, whole, strict=True):
        assert 0 < row["prefix/math"] < 1
        assert row["prefix/code"] == 1
        assert "turns/math" in row
        assert "turns/code" not in row, "what the student plays itself alone is counted"
        assert row["kl/math"] > 0
        assert row["kl/code"] > 0
        assert row["flops/generation"] > other["flops/generation"], "what the teacher played counts"
    assert weights(out) != weights(agents)

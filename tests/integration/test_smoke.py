"""The shipped recipe `smoke`, from the command line to the report; killed, interrupted and changed on the way."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import assert_whole, finish, kill, mopd, retries, rows, run, teachers, texts, wait_for, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from wandb_kit import offline_runs

STEPS = 4
DOMAINS = ["math", "code", "reasoning"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished, undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run("run", "smoke", "--out", out)


def test_a_run_leaves_what_the_design_promises(smoke):
    out, printed = smoke
    for name in (
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "seesaw.json",
        "evaluations.jsonl",
        "rollouts.jsonl",
        "ledger.json",
        "preflight.json",
        "report.html",
        "student/config.json",
        "student/generation_config.json",
        "student/tokenizer.json",
        "wandb",
    ):
        assert (out / name).exists(), name
    assert_whole(out, steps=STEPS)
    assert str(out / "report.html") in printed.replace("\n", "")


def test_all_that_a_run_leaves_is_on_the_page_of_files(smoke):
    out, _ = smoke
    rows_of_page = [line for line in (ROOT / "docs" / "files.md").read_text().splitlines() if line.startswith("| `")]
    named = {name.split("/")[0] for row in rows_of_page for name in re.findall(r"`([^`]+)`", row)}
    assert [path.name for path in out.iterdir() if path.name not in named] == []


def test_wandb_knows_who_was_made_of_whom(smoke):
    """What a run uses is, by name and content, what its stages have made."""
    out, _ = smoke
    used, made = {}, {}
    for folder in (out, *(out / "stages").iterdir()):
        (shown,) = offline_runs(folder)
        for artifact in (record.artifact for record in shown.records if record.HasField("artifact")):
            if artifact.type == "model":
                (used if artifact.use_after_commit else made)[artifact.name] = artifact.digest
    assert set(made) == {"smoke.student", "smoke-base", *(f"smoke-{name}" for name in DOMAINS)}
    assert used.pop("smoke-base.initial")
    assert used == {name: digest for name, digest in made.items() if name != "smoke.student"}


def test_every_teacher_was_tried_out_before_the_first_step(smoke):
    out, printed = smoke
    told = json.loads((out / "preflight.json").read_text())
    assert told["passed"]
    assert [(one["teacher"], one["domain"]) for one in told["findings"]] == [(name, name) for name in DOMAINS]
    assert all("nats a token at the start" in one["reason"] for one in told["findings"])
    assert printed.count("can they teach this student?") == 1
    assert "Can they teach this student?" in (out / "report.html").read_text()


def test_every_model_sat_the_whole_exam(smoke):
    out, _ = smoke
    seesaw = json.loads((out / "seesaw.json").read_text())
    assert seesaw["format"] == 1
    assert seesaw["domains"] == DOMAINS
    assert set(seesaw["models"]) == {"base", "teachers/math", "teachers/code", "teachers/reasoning", "student"}
    for scores in seesaw["models"].values():
        assert {d: s["n"] for d, s in scores.items()} == dict.fromkeys(DOMAINS, 16)
    assert [point["step"] for point in seesaw["curve"]] == [0, 2, 4]
    answers = rows(out / "evaluations.jsonl")
    for model, scores in seesaw["models"].items():
        for domain, score in scores.items():
            mine = [r["correct"] for r in answers if (r["model"], r["split"], r["domain"]) == (model, "test", domain)]
            assert score["score"] == pytest.approx(sum(mine) / len(mine))


def test_the_student_is_a_checkpoint_that_transformers_loads_whole(smoke):
    out, _ = smoke
    model, loading = AutoModelForCausalLM.from_pretrained(out / "student", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_student_moved_and_the_teachers_differ(smoke):
    models = weights(smoke[0])
    assert len(models) == 5
    assert len(set(models.values())) == 5


def test_samples_carry_an_advantage_for_every_token(smoke):
    samples = rows(smoke[0] / "rollouts.jsonl")
    assert {(s["step"], s["domain"]) for s in samples} == {(step, d) for step in (2, 4) for d in DOMAINS}
    for sample in samples:
        assert len(sample["tokens"]) == len(sample["advantages"]) > 0


def test_shares_add_up_and_every_role_is_on_the_ledger(smoke):
    out, _ = smoke
    for row in rows(out / "metrics.jsonl"):
        if row["kind"] == "train":
            for share in ("token_share", "gradient_share", "advantage_share"):
                assert sum(row[f"{share}/{d}"] for d in DOMAINS) == pytest.approx(1.0)
    ledger = json.loads((out / "ledger.json").read_text())["roles"]
    assert {"generation", "update", "evaluation", "teacher/math", "stage/base/update"} <= set(ledger)
    written = sum(r.get("tokens/generation", 0) for r in rows(out / "metrics.jsonl"))
    assert ledger["generation"]["tokens"] == written > 0
    assert ledger["update"]["flops"] > ledger["generation"]["flops"] > 0
    exams = rows(out / "exams.jsonl")
    # Base and teachers on two splits, the student's curve, what teachers graded of it, and its final test.
    assert len(exams) == 2 * 4 + 3 + 3 + 1
    for row in rows(out / "metrics.jsonl"):
        if row["kind"] == "eval":
            assert {f"{name}/{d}" for name in ("held_out_kl", "held_out_entropy") for d in DOMAINS} <= row.keys()
            assert all(0 < row[f"topk_overlap/{d}"] <= 1 for d in DOMAINS)
    assert ledger["evaluation"]["tokens"] == sum(row["tokens"] for row in exams) > 0
    assert ledger["evaluation"]["flops"] > 0


def test_the_same_command_on_a_finished_run_changes_nothing(smoke):
    out, _ = smoke
    before = {p: (out / p).read_bytes() for p in ("metrics.jsonl", "evaluations.jsonl", "seesaw.json")} | weights(out)
    run("run", "smoke", "--out", out)
    assert {p: (out / p).read_bytes() for p in ("metrics.jsonl", "evaluations.jsonl", "seesaw.json")} | weights(
        out
    ) == before


def test_the_step_that_was_best_on_validation_is_tested_and_exported(smoke, tmp_path):
    """The answers of step 2 are made right ones, so it is best; the run is finished again from there."""
    out = tmp_path / "best"
    shutil.copytree(smoke[0], out)
    for made in ("finished.json", "seesaw.json"):
        (out / made).unlink()
    shutil.rmtree(out / "student")
    answers = [row for row in rows(out / "evaluations.jsonl") if (row["model"], row["split"]) != ("student", "test")]
    for row in answers:
        if (row["model"], row["step"]) == ("student", 2):
            row["correct"] = 1.0
    (out / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    run("run", "smoke", "--out", out)
    chosen = json.loads((out / "seesaw.json").read_text())["selected"]
    assert (chosen["step"], chosen["by"]) == (2, "worst_points"), "no teacher of this recipe is clearly better"
    tested = [r["step"] for r in rows(out / "evaluations.jsonl") if (r["model"], r["split"]) == ("student", "test")]
    assert tested == [2] * 48
    saved = load_file(out / "checkpoints/step-000002/shard-00000-of-00001.safetensors")
    exported = load_file(out / "student/model.safetensors")
    written = {name: saved[f"weight/{name}"] for name in exported if f"weight/{name}" in saved}
    same = {name: torch.equal(tensor, exported[name].reshape(-1)) for name, tensor in written.items()}
    assert len(same) > 10
    assert all(same.values())
    assert weights(out)["student/model.safetensors"] != weights(smoke[0])["student/model.safetensors"]


def test_a_run_that_collapses_is_ended_by_the_rule_it_declared(smoke, tmp_path):
    """A learning rate that breaks the student; the distance to its teachers tells, and the run ends in order."""
    out = tmp_path / "collapsed"
    shutil.copytree(smoke[0] / "stages", out / "stages")
    changes = ("student.optimizer.lr=3.0", "student.optimizer.warmup_steps=0", "run.steps=12", "stop.kl=1.0")
    printed = run("run", "smoke", *changes, "--out", out)
    evaluated = [row for row in rows(out / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in evaluated] == [0, 2, 4]
    assert all(evaluated[0][f"held_out_kl/{d}"] < 1 for d in DOMAINS), "it was sound before"
    broken = [d for d in DOMAINS if min(row[f"held_out_kl/{d}"] for row in evaluated[1:]) > 1]
    assert broken
    assert_whole(out, steps=4)
    seesaw = json.loads((out / "seesaw.json").read_text())
    assert seesaw["stopped"]["step"] == 4
    assert f"held_out_kl/{broken[0]} was" in seesaw["stopped"]["why"]
    assert "ended after step 4 of 12 by `stop`" in " ".join(printed.split())
    assert (out / "student" / "config.json").is_file()
    assert (out / "checkpoints" / "step-000004").is_dir()


def test_a_changed_recipe_is_refused_and_the_difference_shown(smoke):
    code, printed = finish(mopd("run", "smoke", "run.steps=5", "--out", smoke[0]))
    assert code == 2
    assert "run.steps" in printed
    assert "--restart" in printed
    assert "Traceback" not in printed


def test_a_killed_run_goes_on_to_the_same_weights(smoke, tmp_path):
    """Killed in a stage and in the run itself, where a second live run is refused as well; then a teacher of it."""
    out = tmp_path / "killed"
    process = mopd("run", "smoke", "--out", out)
    wait_for(process, out / "stages" / "base" / "metrics.jsonl", 4)
    kill(process)
    process = mopd("run", "smoke", "--out", out)
    wait_for(process, out / "rollouts.jsonl", 1)
    os.kill(process.pid, signal.SIGSTOP)  # alive, and surely not finished while the other one starts
    code, printed = finish(mopd("run", "smoke", "--out", out))
    assert code == 2, printed
    assert str(process.pid) in printed
    kill(process)
    process = mopd("run", "smoke", "--out", out)
    victim = random.choice(teachers(process, 3))
    time.sleep(moment := random.uniform(0, 3))
    victim.kill()
    code, printed = finish(process)
    assert code == 0, printed
    assert retries(out) >= 1, f"a teacher was killed {moment:.1f} s after its start"
    assert_whole(out, steps=STEPS)
    assert weights(out) == weights(smoke[0])
    assert texts(out) == texts(smoke[0])
    answers = [(r["model"], r["step"], r["prompt_id"], r["correct"]) for r in rows(out / "evaluations.jsonl")]
    expected = [(r["model"], r["step"], r["prompt_id"], r["correct"]) for r in rows(smoke[0] / "evaluations.jsonl")]
    assert sorted(answers) == sorted(expected)


def test_experts_spread_over_two_ranks(tmp_path):
    out = tmp_path / "ep"
    run("run", "smoke_expert_parallel", "--out", out)
    assert_whole(out, steps=STEPS)
    _, loading = AutoModelForCausalLM.from_pretrained(out / "student", output_loading_info=True)
    assert not loading["missing_keys"]

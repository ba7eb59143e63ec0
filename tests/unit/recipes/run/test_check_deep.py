"""`mopd check --deep` on real tiny models: scores that are wrong are noticed, distances and gains are those of hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from check_kit import recipe, save_model, tokenizer_of, tree
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mopd.distill.models.load import load_model
from mopd.recipes.cli import app
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.run.check_deep import deep_findings
from mopd.recipes.run.preflight import Finding, judge

ASKED_LATER = "a run asks it then, before its first step"
QUICKLY = {"evaluate": {"validation_prompts": 4}, "rollout": {"max_new_tokens": 40, "temperature": 0.8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a teacher of one tokenizer, and an adapter over the student."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        save_model(folder / name, tokenizer_of("arithmetic"), initializer_range=0.5)
    base = load_model(folder / "student", device="cpu", dtype="float32")
    adapted = get_peft_model(base, LoraConfig(r=1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.5)
    adapted.save_pretrained(str(folder / "adapter"))
    return folder


@pytest.mark.parametrize(
    ("kl", "student", "teacher", "verdict", "reason"),
    [
        (0.04, [0, 0, 0, 0], [1, 1, 1, 1], "usable", "100.0% right, the student 0.0%"),
        (0.3, [0, 0, 0, 0], [1, 1, 1, 1], "warning", "above 0.2"),
        (0.04, [1, 0, 1, 0], [1, 0, 1, 0], "warning", "no gain of 2.0 points"),
        # Gains 1, 0, 0, 0: mean 0.25, standard deviation sqrt(3)/4, three standard errors 0.65.
        (0.04, [0, 0, 0, 0], [1, 0, 0, 0], "warning", "no gain of 65.0 points"),
        (0.0, [0, 0], [], "usable", "as an anchor"),
        (float("inf"), [0, 0], [1, 1], "unusable", "KL to it is inf"),
    ],
)
def test_a_teacher_is_judged_by_distance_and_gain(
    kl: float, student: list[float], teacher: list[float], verdict: str, reason: str
) -> None:
    finding = judge("euler", "math", kl, student, teacher)
    assert (finding.verdict, bool(finding.remedy)) == (verdict, verdict != "usable")
    assert reason in finding.reason


def anchored(folder: Path) -> dict[str, Any]:
    """A recipe with a teacher of each kind."""
    teachers = {
        "other": {"model": str(folder / "teacher")},
        "adapted": {"model": str(folder / "student"), "adapter": str(folder / "adapter")},
        "anchor": {"model": "self"},
        "made": {"model": "stage:made"},
    }
    domains = {name: {"task": "arithmetic", "teacher": name, "prompts": 2} for name in teachers}
    stages = {"made": {"from": str(folder / "student")}}
    return {
        "student": {"model": str(folder / "student")}, "teachers": teachers, "domains": domains, "stages": stages,
        **QUICKLY,
    }  # fmt: skip


def test_every_kind_of_teacher_is_asked(folder: Path, tmp_path: Path) -> None:
    findings = {finding.teacher: finding for finding in deep_findings(resolve(recipe(**anchored(folder))), tmp_path)}
    assert {name: finding.verdict for name, finding in findings.items()} == {
        "other": "warning",
        "adapted": "warning",
        "anchor": "usable",
        "made": "later",
    }
    assert re.match(r"KL -?0\.000 (± 0\.000 )?nats", findings["anchor"].reason)
    assert "above 0.2" in findings["other"].reason
    assert findings["adapted"].reason != findings["other"].reason
    assert not re.match(r"KL -?0\.000 ", findings["adapted"].reason)
    assert findings["made"] == Finding("made", "made", "later", "after stage:made", ASKED_LATER)
    made = tmp_path / "stages" / "made" / "student"
    save_model(made, tokenizer_of("arithmetic"))
    again = {finding.teacher: finding for finding in deep_findings(resolve(recipe(**anchored(folder))), tmp_path)}
    assert again["made"].verdict == "warning"
    assert again["other"] == findings["other"]


def test_a_student_that_is_yet_to_be_made_leaves_all_for_later(tmp_path: Path) -> None:
    (finding,) = deep_findings(resolve(recipe()), tmp_path)
    assert (finding.teacher, finding.verdict, finding.reason) == ("math", "later", "after stage:base")


def test_the_command_prints_a_table_and_refuses_a_broken_teacher(folder: Path, tmp_path: Path) -> None:
    given = {**tree(), **anchored(folder)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    command = ["check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--deep"]
    ended = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.output
    assert "can they teach this student?" in ended.output
    assert "after stage:made" in ended.output
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tokenizer_of("arithmetic").save_pretrained(tmp_path / "broken")
    given["teachers"] = {**given["teachers"], "other": {"model": str(tmp_path / "broken")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    ended = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert ended.exit_code == 2, ended.output
    assert "`teachers.other` cannot teach domain 'other'" in ended.output

"""`mopd check --deep` on real tiny models: scores that are wrong are noticed, distances and gains are those of hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from check_kit import recipe, save_model, tokenizer_of, tree
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mopd.distill.models.load import load_model
from mopd.distill.types import Prompt, Rollout
from mopd.recipes.cli import app
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.run.check_deep import DeepCheck, self_test
from mopd.recipes.run.findings import Finding, judge, reverse_kl
from mopd.teachers.kinds.checkpoint import TeacherModel

ASKED_LATER = "a run asks it then, before its first step"
QUICKLY = {"evaluate": {"validation_prompts": 4}, "rollout": {"max_new_tokens": 40, "temperature": 0.8}}


def rollouts() -> list[Rollout]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(5):
        ids = rng.integers(2, 20, 4 + index).astype(np.int32)
        mask = np.arange(len(ids)) >= 2
        prompt = Prompt("math", f"math/{index}", tuple(ids[:2].tolist()), "?", "!")
        made.append(Rollout(prompt, ids, mask, np.zeros(len(ids), np.float32), "length", 0, index, index))
    return made


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


def model_of(path: Path, temperature: float) -> TeacherModel:
    return TeacherModel(path, device="cpu", dtype="float32", temperature=temperature, microbatch_tokens=64)


def full(model: TeacherModel) -> list[Any]:
    return [payload.logprobs_TV for payload in model.score([r.token_ids for r in rollouts()], "full")]  # pyright: ignore


def test_scores_under_another_temperature_or_that_do_not_repeat_are_noticed(folder: Path) -> None:
    tempered, plain = model_of(folder / "teacher", 0.5), model_of(folder / "teacher", 1.0)
    assert self_test(tempered, rollouts(), full(tempered), None) is None
    assert self_test(plain, rollouts(), full(plain), None) is None
    told = self_test(tempered, rollouts(), full(plain), None)
    assert told is not None
    assert "asked twice" in told

    class Forgets(TeacherModel):
        """The trap itself: it answers untempered, every time."""

        def score(self, *args: Any) -> Any:
            return plain.score(*args)

    forgets = Forgets(folder / "teacher", device="cpu", dtype="float32", temperature=0.5, microbatch_tokens=64)
    told = self_test(forgets, rollouts(), full(plain), None)
    assert told is not None
    assert "nats from its own distribution at temperature 0.5" in told


def test_the_distance_is_the_mean_over_trained_tokens_of_the_divergence(folder: Path) -> None:
    students, teachers = full(model_of(folder / "student", 1.0)), full(model_of(folder / "teacher", 1.0))
    total, tokens = 0.0, 0
    for p, q, rollout in zip(students, teachers, rollouts(), strict=True):
        for t in range(len(rollout.token_ids)):
            if rollout.loss_mask[t]:
                total += sum(np.exp(float(a)) * (float(a) - float(b)) for a, b in zip(p[t], q[t], strict=True))
                tokens += 1
    assert reverse_kl(students, teachers, rollouts()) == pytest.approx(total / tokens, rel=1e-6)
    assert reverse_kl(students, students, rollouts()) == 0


@pytest.mark.parametrize(
    ("kl", "ours", "theirs", "verdict", "told"),
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
    kl: float, ours: list[float], theirs: list[float], verdict: str, told: str
) -> None:
    found = judge("euler", "math", kl, ours, theirs)
    assert (found.verdict, bool(found.remedy)) == (verdict, verdict != "usable")
    assert told in found.reason


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
    found = {one.teacher: one for one in DeepCheck(resolve(recipe(**anchored(folder))), tmp_path).findings()}
    assert {name: one.verdict for name, one in found.items()} == {
        "other": "warning",
        "adapted": "warning",
        "anchor": "usable",
        "made": "later",
    }
    assert found["anchor"].reason.startswith("KL 0.000 nats")
    assert "above 0.2" in found["other"].reason
    assert found["adapted"].reason != found["other"].reason
    assert not found["adapted"].reason.startswith("KL 0.000 ")
    assert found["made"] == Finding("made", "made", "later", "after stage:made", ASKED_LATER)
    made = tmp_path / "stages" / "made" / "student"
    save_model(made, tokenizer_of("arithmetic"))
    again = {one.teacher: one for one in DeepCheck(resolve(recipe(**anchored(folder))), tmp_path).findings()}
    assert again["made"].verdict == "warning"
    assert again["other"] == found["other"]


def test_a_student_that_is_yet_to_be_made_leaves_all_for_later(tmp_path: Path) -> None:
    (found,) = DeepCheck(resolve(recipe()), tmp_path).findings()
    assert (found.teacher, found.verdict, found.reason) == ("math", "later", "after stage:base")


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

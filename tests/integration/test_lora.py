"""A run whose specialists and student are adapters: one base for all teachers; killed and resumed bitwise."""

import hashlib
import json

import pytest
import torch
from peft import PeftModel
from runs import assert_whole, finish, kill, mopd, rows, run, wait_for, weights
from transformers import AutoModelForCausalLM

RECIPE = """
extends: smoke
name: adapters
student:
  engine: {ranks: 2, zero_stage: 2}
  lora: {rank: 4, alpha: 8, experts: true}
domains:
  reasoning: {teacher: anchor}
teachers:
  math: {model: stage:base, adapter: stage:math}
  code: {model: stage:base, adapter: stage:code}
  reasoning: null
  anchor: {model: self}
stages:
  math: {lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj]}}
  code: {lora: {rank: 2, alpha: 8}}
  reasoning: null
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "adapters.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, recipe):
    """A finished, undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "adapters"
    return out, run("run", recipe, "--out", out)


def digests(out):
    files = [out / "adapter", *(out / "stages" / name / "adapter" for name in ("math", "code"))]
    return [hashlib.sha256((file / "adapter_model.safetensors").read_bytes()).hexdigest() for file in files]


def test_adapters_are_exported_beside_what_they_make(adapters):
    out, _ = adapters
    assert_whole(out, steps=4)
    ids = torch.arange(3, 20)[None]
    for folder in (out, out / "stages" / "math", out / "stages" / "code"):
        named = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str((out / "stages" / "base" / "student").resolve())
        base = AutoModelForCausalLM.from_pretrained(named).eval()
        begun = base(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder / "student").eval()(ids).logits
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(input_ids=ids).logits
        assert (merged - adapted).abs().max() < 1e-5
        assert (merged - begun).abs().max() > 1e-4
        assert "adapter" in json.loads((folder / "finished.json").read_text())


def test_the_anchor_is_the_student_without_its_adapter(adapters):
    out, _ = adapters
    first = next(row for row in rows(out / "metrics.jsonl") if row["kind"] == "train")
    assert first["seconds/teacher/anchor"] > 0
    found = {one["teacher"]: one for one in json.loads((out / "preflight.json").read_text())["findings"]}
    assert found["anchor"]["verdict"] == "usable"
    assert "KL 0.000" in found["anchor"]["reason"].replace("-0.000", "0.000")
    begun = next(row for row in rows(out / "metrics.jsonl") if row["kind"] == "eval" and row["step"] == 0)
    assert begun["held_out_kl/reasoning"] == pytest.approx(0, abs=1e-5)
    assert begun["held_out_kl/math"] > 2e-5  # four steps at rank 4 move little


def test_a_killed_run_ends_with_the_same_adapter(adapters, tmp_path, recipe):
    out = tmp_path / "killed"
    process = mopd("run", recipe, "--out", out)
    wait_for(process, out / "metrics.jsonl", 4)  # two evaluations and two steps
    kill(process)
    code, output = finish(mopd("run", recipe, "--out", out))
    assert code == 0, output
    assert_whole(out, steps=4)
    assert weights(out) == weights(adapters[0])
    assert digests(out) == digests(adapters[0])

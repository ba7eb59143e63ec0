"""Weights that are not what they seem: dropped, packed, or an adapter of another base of the same size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kit import make_adapter
from check_kit import check, problems, recipe, save_model, tokenizer_of
from safetensors.torch import load_file, save_file

from mopd.distill.types import UserError


@pytest.fixture
def base(tmp_path: Path) -> str:
    torch.manual_seed(3)
    save_model(tmp_path / "expert", tokenizer_of("arithmetic"))
    torch.manual_seed(1)
    return save_model(tmp_path / "base", tokenizer_of("arithmetic"))


def students(student: str, **teacher: Any) -> dict[str, Any]:
    return {
        "student": {"model": student},
        "teachers": {"math": {"model": f"{student}/../expert", **teacher}},
        "stages": {},
    }


def test_weights_without_a_place_are_a_warning(tmp_path: Path, base: str) -> None:
    weights = load_file(f"{base}/model.safetensors")
    drafts = {f"model.mtp.layers.{i}.eh_proj.weight": torch.zeros(2, 2) for i in range(3)}
    save_file({**weights, **drafts}, f"{base}/model.safetensors", {"format": "pt"})
    plan = check(recipe(**students(base)), tmp_path / "run")
    warning = next(w for w in plan.warnings if w.startswith("`student.model`"))
    assert "3 weights that its llama has no place for (model.mtp.layers.0.eh_proj.weight, " in warning


def test_a_packed_student_is_refused_and_a_packed_teacher_is_told(tmp_path: Path, base: str) -> None:
    packed = shutil.copytree(base, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    found = problems(tmp_path / "run", **students(str(packed)))
    assert any(p.startswith("`student.model` is a checkpoint whose weights are quantised (fp8)") for p in found)
    plan = check(recipe(**students(base, model=str(packed))), tmp_path / "run")
    assert any(w.startswith("`teachers.math.model`: its weights are in FP8; they are unpacked") for w in plan.warnings)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    plan = check(recipe(**students(base, model=str(packed))), tmp_path / "run")
    assert any(w.startswith("`teachers.math.model`: its weights are quantised (awq)") for w in plan.warnings)


def test_an_adapter_of_another_base_of_the_same_size_is_refused(tmp_path: Path, base: str) -> None:
    torch.manual_seed(2)
    other = save_model(tmp_path / "other", tokenizer_of("arithmetic"))
    adapter = Path(make_adapter(other, tmp_path / "adapter", seed=1))
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def found(named: str | None, model: str = base) -> list[str]:
        changed = {**settings, "base_model_name_or_path": named}
        (adapter / "adapter_config.json").write_text(json.dumps(changed))
        try:
            check(recipe(**students(base, model=model, adapter=str(adapter))), tmp_path / "run")
        except UserError as error:
            return list(error.problems)
        return []

    (problem,) = found(other)
    assert problem.startswith(
        f"`teachers.math.adapter`: {adapter} was trained on the base {other}, and `model` is {base}"
    )
    assert found(other, model=other) == []
    same = shutil.copytree(base, tmp_path / "same")
    assert found(str(same)) == []  # another folder, the same weights
    for named in (None, "", "Qwen/Qwen3-0.6B", str(tmp_path / "elsewhere")):
        assert found(named) == []  # nobody can tell

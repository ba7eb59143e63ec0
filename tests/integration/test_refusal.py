"""A run whose teacher cannot teach: it ends before the first step, with exit code 2; mended, it goes on from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml
from runs import finish, mopd, rows

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from check_kit import OWN_CODE, save_own_code, tokenizer_of

FORBIDS = OWN_CODE.replace("output.logits * 2", "output.logits.index_fill(-1, torch.tensor([7]), float('-inf'))")


def test_a_teacher_that_forbids_a_token_is_refused_before_the_weights_move(tmp_path: Path) -> None:
    """Student and teacher are made by code of their own, which every process of the run has to be allowed to run."""
    torch.manual_seed(0)
    student, teacher = (save_own_code(tmp_path / name, tokenizer_of("arithmetic")) for name in ("student", "teacher"))
    (tmp_path / "teacher" / "own.py").write_text("import torch\n" + FORBIDS)
    recipe = {
        "name": "refused",
        "student": {
            "model": student,
            "trust_remote_code": True,
            "updates_per_step": 1,
            "optimizer": {"warmup_steps": 0},
        },
        "domains": {"math": {"task": "arithmetic", "teacher": "strict", "prompts": 8}},
        "teachers": {"strict": {"model": teacher, "trust_remote_code": True}},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 2, "test_prompts": 2},
        "run": {"steps": 1, "save_every": 1, "evaluate_every": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "run"
    code, printed = finish(mopd("run", tmp_path / "recipe.yaml", "--out", out))
    assert code == 2, printed
    assert "`teachers.strict` cannot teach domain 'math': teacher 'strict' gave NaN or infinity" in printed
    told = json.loads((out / "preflight.json").read_text())
    assert (told["passed"], [one["verdict"] for one in told["findings"]]) == (False, ["unusable"])
    assert not [row for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]
    assert not list((out / "checkpoints").glob("*"))

    (tmp_path / "teacher" / "own.py").write_text(OWN_CODE)
    code, printed = finish(mopd("run", tmp_path / "recipe.yaml", "--out", out))
    assert code == 0, printed
    assert json.loads((out / "preflight.json").read_text())["passed"]
    assert len([row for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]) == 1

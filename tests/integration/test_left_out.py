"""A run from a checkpoint with weights that its model has no place for: check, run and export say which are dropped."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from check_kit import save_model, tokenizer_of
from runs import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

DRAFTS = {f"model.mtp.layers.{i}.{part}.weight": (2, 3) for i in range(2) for part in ("eh_proj", "enorm")}


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_the_export_tells_which_weights_of_its_source_were_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Path(save_model(tmp_path / "base", tokenizer_of("arithmetic")))
    plain = load_file(base / "model.safetensors")
    drafts = {name: torch.zeros(shape) for name, shape in DRAFTS.items()}
    save_file({**plain, **drafts}, base / "model.safetensors", {"format": "pt"})
    recipe = {
        "name": "left-out",
        "device": "cpu",
        "student": {"model": "stage:more"},
        "domains": {"math": {"task": "arithmetic", "teacher": "anchor", "prompts": 4}},
        "teachers": {"anchor": {"model": "stage:other"}},
        "rollout": {"max_new_tokens": 30},
        "evaluate": {"validation_prompts": 4, "test_prompts": 8, "graded_prompts": 0},
        "run": {"steps": 1, "evaluate_every": 1},
        "stages": {
            name: {"from": str(base), "steps": steps, "prompts": 4} for name, steps in (("more", 1), ("other", 9))
        },
    }
    path = tmp_path / "left-out.yaml"
    path.write_text(yaml.safe_dump(recipe))
    said = "4 weights that its llama has no place for"
    checked = run("check", path)
    assert said in checked.replace("\n", " ")
    output = run("run", path, "--out", tmp_path / "run")
    closing = output[output.rindex("student is not all of what it was made from") :]
    assert said in closing.replace("\n", " ")
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    section = card.partition("## Left out")[2].partition("##")[0]
    assert "4 weights of the checkpoint that it was made from have no place in this model" in section
    assert [name for name in DRAFTS if f"`{name}`" not in section] == []
    # And it is so: the export has every other weight of its source, and none of these.
    assert names_in(tmp_path / "run" / "student") & set(DRAFTS) == set()
    assert names_in(tmp_path / "run" / "student") == set(plain)

"""A real vLLM loads what a run leaves: an adapter added in, the adapter over its base, a whole model.

`make test-vllm` installs vLLM in an environment of its own and runs this; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent))

from real_vllm_kit import PYTHON, environment, tiny_models
from runs import run
from transformers import AutoModelForCausalLM

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; `make test-vllm` does that"),
    pytest.mark.timeout(1800),
]

PROMPTS = [[2, *range(5, 5 + n)] for n in (3, 9, 17, 30)]
NEW_TOKENS = 24
STARTED_SECONDS = 900.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Base and teacher: one tokenizer, other weights."""
    return tiny_models(tmp_path_factory.mktemp("models"), ("base", "teacher"))


def finished(models: dict[str, str], folder: Path, **student: Any) -> Path:
    """The folder of a run of three steps that moved its student."""
    recipe = {
        "name": "exported",
        "device": "cpu",
        "student": {"model": models["base"], "optimizer": {"lr": 3.0e-3, "warmup_steps": 0}, **student},
        "domains": {"math": {"task": "arithmetic", "teacher": "teacher", "prompts": 8}},
        "teachers": {"teacher": {"model": models["teacher"]}},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 8, "test_prompts": 8},
        "run": {"steps": 3, "evaluate_every": 3, "save_every": 3},
        "track": {"wandb": {"mode": "disabled"}},
    }
    path, out = folder / "exported.yaml", folder / "run"
    path.write_text(yaml.safe_dump(recipe))
    run("run", path, "--out", out)
    return out


def by_vllm(model: str | Path, folder: Path, adapter: Path | None = None) -> list[list[int]]:
    """Greedy answers to :data:`PROMPTS`, token ids, by vLLM in its own environment."""
    prompts, answers = folder / "prompts.json", folder / "answers.json"
    prompts.write_text(json.dumps(PROMPTS))
    command = [PYTHON, Path(__file__).with_name("greedy.py"), model, prompts, answers, *([adapter] if adapter else [])]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=STARTED_SECONDS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(answers.read_text())


def by_transformers(model: str | Path) -> list[list[int]]:
    """The same by transformers, a prompt at a time."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                ids = torch.cat([ids, loaded(ids).logits[:, -1:].argmax(-1)], dim=1)
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


def test_an_adapter_and_what_it_makes(models: dict[str, str], tmp_path: Path) -> None:
    out = finished(models, tmp_path, lora={"rank": 4, "alpha": 8})
    expected = by_transformers(out / "student")
    assert expected != by_transformers(models["base"])  # else the base alone would pass
    assert by_vllm(out / "student", tmp_path) == expected
    assert by_vllm(models["base"], tmp_path, out / "adapter") == expected


def test_a_whole_model(models: dict[str, str], tmp_path: Path) -> None:
    out = finished(models, tmp_path)
    expected = by_transformers(out / "student")
    assert expected != by_transformers(models["base"])
    assert by_vllm(out / "student", tmp_path) == expected

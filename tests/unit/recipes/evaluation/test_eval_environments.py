"""`mopd eval` and `mopd check` on environments, shipped and of bfcl: turns and calls beside the score, tools shown."""

from __future__ import annotations

import importlib.util
import json
import string
from pathlib import Path
from typing import Any

import pytest
from check_kit import save_model
from cli_kit import mopd

from mopd.distill.recipe import DomainRecipe
from mopd.recipes.check.tasks import check_gold_answers
from mopd.rollouts.tokenizer import build_tokenizer

TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}{% for m in messages %}"
    "<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{% endfor %}<eos>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALCULATOR = {"environment": "calculator", "turns": 3, "max_tokens_turn": 6, "max_tokens": 60}


def recipe(path: Path, model: str, domain: dict[str, Any], **sections: Any) -> str:
    written = {
        "name": "played",
        "student": {"model": model},
        "domains": {"played": {**domain, "reward": True}},
        "method": "mix_rl",
        "loss": {"estimator": "policy_gradient", "reward_weight": 1.0},
        "evaluate": {"test_prompts": 4, "validation_prompts": 4},
        "rollout": {"max_new_tokens": 6, "samples_per_prompt": 2},
        **sections,
    }
    path.write_text(json.dumps(written))
    return str(path)


def test_eval_tells_turns_calls_and_how_episodes_ended(tmp_path: Path) -> None:
    tokenizer: Any = build_tokenizer([string.printable] * 2, 130)
    model = save_model(tmp_path / "model", tokenizer, initializer_range=0.3)
    result = mopd(
        "eval", model, "--recipe", recipe(tmp_path / "a.yaml", model, CALCULATOR), "--samples", "2", "--json",
        str(tmp_path / "a.json"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "tool errors" in " ".join(result.output.split())
    task = json.loads((tmp_path / "a.json").read_text())["tasks"]["played"]
    assert (task["greedy"]["n"], task["sampled"]["n"], task["left_out"]) == (4, 4, [])
    episodes = task["episodes"]
    assert episodes["solved"]["score"] == 0.0
    assert sum(episodes["ended"].values()) == 4
    assert 1 <= episodes["turns"]["low"] <= episodes["turns"]["mean"] <= episodes["turns"]["high"]
    assert episodes["failures"] == {}


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="the package bfcl-eval is not installed")
def test_check_shows_a_case_of_bfcl_with_its_tools_and_eval_plays_it(tmp_path: Path) -> None:
    tokenizer: Any = build_tokenizer([string.printable] * 2, 130, TEMPLATE)
    model = save_model(tmp_path / "model", tokenizer, max_position_embeddings=22_000)
    domain = {"environment": {"bfcl": "multi_turn_base", "args": {"calls": 2}}, "turns": 3, "max_tokens_turn": 4}
    path = recipe(tmp_path / "a.yaml", model, {**domain, "max_tokens": 4000})
    checked = mopd("check", path, "--out", str(tmp_path / "run"))
    shown = checked.output.replace("\n", "")
    assert '"type": "function", "function": {"name": ' in shown
    assert "tools: " in shown
    assert "of 200 cases of bfcl:multi_turn_base are left out" in " ".join(checked.output.split())
    result = mopd("eval", model, "--recipe", path, "--prompts", "2", "--json", str(tmp_path / "a.json"))
    assert result.exit_code == 0, result.output
    task = json.loads((tmp_path / "a.json").read_text())["tasks"]["played"]
    assert sum(task["episodes"]["ended"].values()) == 2
    assert "multi_turn_base_" in task["left_out"][0]


def test_supervised_learning_takes_environments_with_scripts() -> None:
    named = {"calls": "bfcl:multi_turn_base", "maths": "verifiers:gsm8k", "sums": "calculator"}
    domains = {name: DomainRecipe.model_validate({"environment": source}) for name, source in named.items()}
    (refusal,) = check_gold_answers(domains, {"method": list(domains)})
    assert "'maths'" in refusal

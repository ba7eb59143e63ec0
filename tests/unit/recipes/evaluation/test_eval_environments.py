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
from dialogue_kit import task_of

from mopd.distill.recipe import DomainRecipe
from mopd.recipes.check.tasks import check_gold_answers
from mopd.rollouts.environments.base import ToolEpisode
from mopd.rollouts.environments.task import EnvironmentTask
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
    (refusal,) = check_gold_answers(domains, {"method": list(domains)}, {})
    assert "'maths'" in refusal


def test_an_environment_without_a_script_is_refused_where_one_is_learnt_or_gone_on_with() -> None:
    """Before anything is spent: what teaches nothing shows in its first episode."""
    task = task_of("calculator")
    without = EnvironmentTask(Silent(task), domain="sums", turns=task.turns, limits=task.limits)
    taught = {"environment": "calculator", "teacher": "t", "prefix": "dataset"}
    domains = {"sums": DomainRecipe.model_validate(taught)}
    assert list(check_gold_answers(domains, {}, {"sums": task})) == []
    (refusal,) = check_gold_answers(domains, {}, {"sums": without})
    assert "`domains.sums.prefix`: the environment of domain 'sums' has no `script`" in refusal
    (refusal, _) = check_gold_answers(domains, {"stages.s": ["sums"]}, {"sums": without})
    assert "`stages.s`: the environment of domain 'sums' has no `script`" in refusal


class Silent:
    """Episodes of another, without their scripts."""

    def __init__(self, task: EnvironmentTask) -> None:
        self._task = task

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
        episode: Any = self._task.open(seed=seed, split=split, index=index, easy=easy).episode
        return ToolEpisode(messages=episode.messages, tools=episode.tools, judge=lambda text: 0.0)

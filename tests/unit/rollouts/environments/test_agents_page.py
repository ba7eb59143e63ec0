"""The environment of docs/agents.md is one: its script is right, and its tool tells what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from check_kit import save_model
from dialogue_kit import played, prompts_of, task_of

from mopd.distill.recipe import DomainRecipe, EnvironmentSource
from mopd.recipes.resolve.initial import training_texts
from mopd.rollouts.environments import environment_task
from mopd.rollouts.environments.episodes import gold_episodes
from mopd.rollouts.environments.packages.bfcl import CATEGORIES, INSTALL, BfclSettings
from mopd.rollouts.tokenizer import build_tokenizer, closing_id, completion_text, to_prompt

PAGE = (Path(__file__).parents[4] / "docs" / "agents.md").read_text()


def code_with(text: str) -> str:
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if text in code]
    return code


def test_the_program_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(code_with("OPENAI_BASE_URL"))
    task = task_of({"program": f"{sys.executable} {tmp_path}/agent.py"})
    prompts = prompts_of(task, 2)
    assert [prompt.text for prompt in prompts] == ["plus 0 7=", "plus 1 7="]
    first, second = played(task, lambda text: "7", prompts)
    assert [rollout.episode and rollout.episode.reward for rollout in (first, second)] == [1.0, 0.0]


def test_the_environment_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "longer.py").write_text(code_with("class Longer"))
    source = EnvironmentSource(environment=f"{tmp_path}/longer.py:Longer", turns=5, max_tokens_turn=16)
    texts = {"words": environment_task(source, domain="words", tokenizer=None)}
    tokenizer: Any = build_tokenizer(training_texts(texts, seed=0), 100)
    save_model(tmp_path / "model", tokenizer)
    task = environment_task(source, domain="words", tokenizer=tokenizer)
    examples = [task.example(seed=0, split="train", index=i) for i in range(8)]
    prompts = [to_prompt(tokenizer, domain="words", example=example) for example in examples]
    sampler = gold_episodes({"words": task}, tokenizer, closing_id(tokenizer))
    (rollouts,) = sampler.sample(prompts, step=0)
    for rollout in rollouts:
        record = rollout.episode
        assert record is not None
        words = rollout.prompt.text.removeprefix("longer ").removesuffix("=").split(",")
        assert (record.reward, record.tool_calls, record.tool_errors) == (1.0, len(words), 0)
        shown = "".join(f"count({word})<eos>{len(word)};" for word in words) + max(words, key=len)
        assert completion_text(tokenizer, rollout) == f"{shown}<eos>"
    assert task.verify_many(prompts, ["no"] * 8) == [0.0] * 8


def test_the_stanza_of_bfcl_is_one() -> None:
    (stanza,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "bfcl" in text]
    (domain,) = yaml.safe_load(stanza)["domains"].values()
    task = DomainRecipe.model_validate(domain).task
    assert isinstance(task, EnvironmentSource)
    assert task.environment.removeprefix("bfcl:") in CATEGORIES
    assert BfclSettings.model_validate(task.args).calls == 5
    assert all(f"`{category}`" in PAGE for category in CATEGORIES)
    assert INSTALL in PAGE

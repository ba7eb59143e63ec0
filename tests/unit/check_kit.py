"""Tiny checkpoints with tokenizers, and a recipe that needs nothing else, for the tests of `mopd check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from mopd.distill.recipe import Recipe
from mopd.distill.types import UserError
from mopd.recipes.check import static
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check.routes import check_routes
from mopd.recipes.check.settings import idle_leaves
from mopd.recipes.resolve.initial import training_texts
from mopd.recipes.resolve.resolved import resolve
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import build_tokenizer

CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def tokenizer_of(*tasks: str, vocabulary: int = 120) -> PreTrainedTokenizerBase:
    """A tokenizer trained on the texts of shipped tasks."""
    return build_tokenizer(training_texts({name: TASKS[name] for name in tasks}, seed=0), vocabulary)


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, **config: Any) -> str:
    """A tiny llama with this tokenizer; returns the folder."""
    settings = {**CONFIG, "vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0, **config}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tree(**changes: Any) -> dict[str, Any]:
    """A recipe with a base made from scratch and one teacher, as a mapping, with whole sections replaced."""
    return {
        "name": "tree",
        "student": {"model": "stage:base"},
        "domains": {"math": {"task": "arithmetic", "teacher": "math", "prompts": 4}},
        "teachers": {"math": {"model": "stage:math"}},
        "stages": {
            "base": {"from": {"architecture": "llama", "config": CONFIG, "vocabulary": 100}},
            "math": {"from": "stage:base"},
        },
        **changes,
    }


def recipe(**changes: Any) -> Recipe:
    """:func:`tree` as a recipe."""
    return Recipe.model_validate(tree(**changes))


def check(recipe: Recipe, out: Path, *, offline: bool = False) -> Plan:
    """The plan of a recipe, resolved here and found sound."""
    return static.check(resolve(recipe), out, offline=offline)


def routes_problems(recipe: Recipe) -> list[str]:
    """What is wrong with a recipe by itself, before anything is loaded."""
    return check_routes(resolve(recipe), tasks=TASKS)


def warnings(recipe: Recipe) -> list[str]:
    """The leaves of a recipe that are set and change nothing, each a sentence."""
    return list(idle_leaves(resolve(recipe)))


def problems(out: Path, **changes: Any) -> list[str]:
    """What is wrong with :func:`recipe`, changed; it must be something."""
    with pytest.raises(UserError) as caught:
        check(recipe(**changes), out)
    return list(caught.value.problems)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
"""


def save_own_code(folder: Path, tokenizer: PreTrainedTokenizerBase, **config: Any) -> str:
    """A tiny llama whose code lies in its folder: it doubles the logits; returns the folder."""
    save_model(folder, tokenizer, **config)
    (folder / "own.py").write_text(OWN_CODE)
    written = json.loads((folder / "config.json").read_text())
    written |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    written["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(written))
    return str(folder)

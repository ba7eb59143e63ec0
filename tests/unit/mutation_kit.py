"""Wrong recipes by the thousand: every leaf of the schema with values that nobody should give it, by seed.

The schema is walked, so a new leaf is mutated without anybody's help.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from check_kit import CONFIG
from pydantic import BaseModel

from mopd.distill.recipe import Architecture, ChunkedReverseKL, Source, StageRecipe, StopRecipe, TopKReverseKL
from mopd.distill.recipe.messages import Leaf, leaves
from mopd.distill.recipe.schema.loss import ESTIMATORS, CustomLoss
from mopd.distill.recipe.schema.optimizers import AdamW, PlainSGD

MADE: dict[str, Any] = {"architecture": "llama", "vocabulary": 80, "config": CONFIG}
TASK = {"path": "./rows.jsonl", "verifier": "number"}
NAMES = {"domains": "math", "teachers": "math", "stages": "math"}
"""The entry that is mutated where a user chooses the names."""


def sound() -> dict[str, Any]:
    """A small recipe that is accepted and runs: a base made from nothing, a specialist, and two steps."""
    return {
        "name": "tiny",
        "device": "cpu",
        "student": {
            "model": "stage:base",
            "engine": {"microbatch_tokens": 1024},
            "optimizer": {"warmup_steps": 1},
            "updates_per_step": 1,
        },
        "domains": {"math": {"task": "arithmetic", "teacher": "math", "prompts": 4}},
        "teachers": {"math": {"model": "stage:math"}},
        "rollout": {"max_new_tokens": 48},
        "evaluate": {"validation_prompts": 4, "test_prompts": 4, "graded_prompts": 2},
        "run": {"steps": 2, "evaluate_every": 2, "save_every": 2},
        "stages": {
            name: {"from": source, "steps": 2, "optimizer": {"warmup_steps": 1}}
            for name, source in {"base": copy.deepcopy(MADE), "math": "stage:base"}.items()
        },
    }


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Text(str):
    """Written into the YAML as it stands."""


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "one": 1,
    "two": 2,
    "a half": 0.5,
    "one and a half": 1.5,
    "minus a half": -0.5,
    "ten": 10,
    "a hundred": 100,
    "a thousand": 1000,
    "a million": 1e6,
    "almost one": 0.999,
    "a hundredth": 0.01,
    "a thousandth": 0.001,
    "a millionth": 1e-6,
    "denormal": 1e-310,
    "tiny": 1e-30,
    "small": 1e-7,
    "huge": 1e30,
    "largest": 1.7e308,
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "a billion": 10**9,
    "10^30": 10**30,
    "63 bits": 2**63 - 1,
    "64 bits": 2**64,
    "400 digits": 10**400,
    "5000 digits": Text("1" + "0" * 5000),
    "no text": "",
    "blank": " ",
    "word": "word",
    "number in quotes": "1",
    "zero byte": "a\0b",
    "surrogate": Text(r'"\uD800"'),
    "300 letters": "x" * 300,
    "100,000 letters": "x" * 100_000,
    "snowman": "\N{SNOWMAN}",
    "line ends": "a\nb\r\nc",
    "markup": "[bold]a[/nothing]",
    "path": "./nowhere",
    "folder": "./",
    "loop": "./loop",
    "plugin": "./nowhere.py:NAME",
    "plugin of a loop": "./loop.py:NAME",
    "stage": "stage:base",
    "no stage": "stage:",
    "self": "self",
    "no list": [],
    "list": [1],
    "text list": ["a"],
    "pair": [0.5, 0.9],
    "inverted": [2.0, 1.0],
    "no mapping": {},
    "mapping": {"a": 1},
    "text mapping": {"a": "b"},
    "nan inside": {"hidden_size": float("nan")},
    "infinity inside": {"rope_theta": float("inf")},
    "absurd inside": {**CONFIG, "hidden_size": 10**30},
    "many layers": {**CONFIG, "num_hidden_layers": 10**9},
    "dropout": {**CONFIG, "attention_dropout": 1.0},
    "odd names": {"": 1, "a b": 2, "a.b": 3},
    "900 levels": deep(900),
    "60 levels": deep(60),
    "date": Text("2026-01-01"),
    "tag": Text("!!python/object:os.system [true]"),
    "timestamp": Text("!!timestamp soon"),
    "bytes": Text("!!binary gICAgA=="),
    "bytes key": Text("{!!binary gICAgA== : 1}"),
    "list key": Text("{? [1, 2] : 3}"),
    "null key": Text("{null: 1}"),
    "set": Text("!!set {a, b}"),
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """A recipe's tree with one leaf changed.

    Attributes:
        path: of the leaf, with the names of the recipe.
        value: what it has now, in words.
    """

    path: str
    value: str
    tree: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path}={self.value}"


def mutations(seed: int, *, of_each: int) -> Iterator[Mutation]:
    """``of_each`` mutations of every leaf, and its description's own choices where it has any."""
    for number, leaf in enumerate(leaves()):
        rng = random.Random(f"{seed}/{number}/{leaf.path}/{leaf.owner.__name__}")
        values = dict(rng.sample(sorted(VALUES.items(), key=lambda item: item[0]), of_each))
        values |= {f"choice {choice}": choice for choice in choices(leaf.field.annotation)}
        for name, value in values.items():
            tree, path = mutated(leaf, value)
            yield Mutation(path, name, tree)


def choices(annotation: Any) -> list[Any]:
    """What a literal type offers."""
    arguments = get_args(annotation)
    return [] if any(isinstance(a, type) or get_args(a) for a in arguments) else [a for a in arguments if a is not None]


def mutated(leaf: Leaf, value: Any) -> tuple[dict[str, Any], str]:
    """The sound recipe with one leaf changed, in a section that has such a leaf; and the leaf's path in it."""
    tree = sound()
    if leaf.path.startswith("merge."):
        tree["method"] = "merge"
    if leaf.path == "rollout.keep_verified":
        tree |= {"method": "expert_iteration", "loss": {"estimator": "nll"}, "teachers": {}}
        tree["domains"]["math"] = {"task": "arithmetic", "reward": True, "prompts": 4}
        tree["rollout"]["samples_per_prompt"] = 2
        del tree["stages"]["math"]
    keys = leaf.path.split(".")
    keys = [NAMES[keys[place - 1]] if key == "*" else key for place, key in enumerate(keys)]
    if keys[:1] == ["stages"] and keys[-1] in ("architecture", "config", "vocabulary"):
        keys[1] = "base"
    section = tree
    for key in keys[:-1]:  # not per token
        section = section.setdefault(key, {}) if isinstance(section.get(key, {}), dict) else _new(section, key)
    given = {} if keys[-1] == "estimator" and str(value) not in ESTIMATORS else beside(leaf.owner)
    section |= {name: setting for name, setting in given.items() if name not in section}
    section[keys[-1]] = value
    return tree, ".".join(keys)


def _new(section: dict[str, Any], key: str) -> dict[str, Any]:
    section[key] = {}
    return section[key]


def beside(owner: type[BaseModel]) -> dict[str, Any]:
    """What must stand beside a leaf for its section to be the one that has it."""
    if owner is Architecture:
        return copy.deepcopy(MADE)
    if owner is Source:
        return dict(TASK)
    if owner is PlainSGD:
        return {"name": "sgd"}
    if owner is AdamW:
        return {"name": "adamw"}
    if owner is CustomLoss:
        return {"estimator": "./own.py:LOSS"}
    if owner is StopRecipe:
        return {"evaluations": 1}
    if owner is StageRecipe:
        return {"samples_per_prompt": 2}
    if owner is TopKReverseKL:
        return {"estimator": "topk_reverse_kl", "k": 8}
    if owner is ChunkedReverseKL:
        return {"estimator": "chunked_reverse_kl", "k": 8}
    names = [name for name, settings in ESTIMATORS.items() if settings is owner]
    return {"estimator": names[0]} if names else {}


def write_yaml(value: Any) -> str:
    """Plain values as YAML in flow style, in which :class:`Text` stands as it is."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {write_yaml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        depth, inner = 0, value
        while isinstance(inner, list) and len(inner) == 1:
            depth, inner = depth + 1, inner[0]
        if depth:
            return "[" * depth + write_yaml(inner) + "]" * depth
        return "[" + ", ".join(map(write_yaml, value)) + "]"
    if isinstance(value, float):
        special = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
        return special.get(repr(value), repr(value))
    return json.dumps(value)


OWN = """
from mopd import LossSpec, log_softmax, spread


def kl(logits_BTV, microbatch, settings):
    mask_BT = microbatch.mask_BT
    logprobs_NV = log_softmax(logits_BTV[mask_BT])
    kl_N = (logprobs_NV.exp() * logprobs_NV).sum(-1)
    return spread(kl_N, {"kl": kl_N.detach()}, mask_BT)


LOSS = LossSpec("full", kl)
"""


def write_folder(folder: Path) -> None:
    """What the sound recipe's neighbours need: rows, an own file, links to themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i)} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(OWN)
    for name in ("loop", "loop.py", "loop.yaml", "loop.jsonl"):
        (folder / name).symlink_to(name)

"""The recipe's schema: every leaf is documented and matters; the JSON Schema that editors use."""

from __future__ import annotations

import ast
import functools
import inspect
import math
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from mopd.distill.recipe import AdamW, Architecture, DomainRecipe, EnvironmentSource, Recipe, TeacherRecipe
from mopd.distill.recipe.files import diff_recipes, shipped_recipes
from mopd.distill.recipe.json_schema import editor_schema
from mopd.distill.recipe.messages import Leaf, keys_at, leaves
from mopd.distill.recipe.study import load
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.study import study_runs

ROOT = Path(__file__).parents[4]

EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "student": {"model": {"architecture": "llama", "config": {"hidden_size": 8}}, "lora": {}},
    "domains": {
        "first": {"task": {"path": "./data.jsonl"}, "prompts": 8},
        "second": {"task": "arithmetic", "teachers": {"t": 0.5, "u": 0.5}},
        "third": {"task": {"reasoning_gym": "chain_sum"}, "teacher": "t"},
        "fourth": {"environment": "calculator", "teacher": "t"},
    },
    "teachers": {"t": {"model": "stage:s"}, "u": {"model": "stage:s"}},
    "loss": {"estimator": "policy_gradient"},
    "stop": dict.fromkeys(("kl", "truncation", "repetition", "length"), 0.5),
    "architectures": {"org/model": {"model_type": "llama"}},
    "run": {"plateau": {}, "compute": {"flops": 1e12}, "stale": {}},
    "stages": {"s": {"from": {"architecture": "llama"}, "lora": {}, "plateau": {}}},
}
OTHER: dict[str, Any] = {
    "stages_seed": 5,
    "run.compute": {"flops": 2e12},
    "run.stale": None,
    "run.stale.ratio": [0.1, 9.0],
    "rollout.off_policy_steps": 5,
    "student.optimizer.warmup_steps": 3,
    "stages.*.optimizer.warmup_steps": 3,
    "loss.settings": {"strength": 2.0},  # leaves whose other value has to be said, because most values would be refused
    "loss.gate": [0.1, 9.0],
    "teachers.*.resources": {"big": 1.0},
    "method": "cascade",
    "rollout.engine": "./engine.py:ENGINE",
    "rollout.vllm.extra": {"max_model_len": 64},
    "teachers.*.kind": "./kind.py:KIND",
    "teachers.*.settings": {"strength": 2.0},
    "track.sinks": ["./sink.py:SINK"],
    "stages.*.shares": {"first": 0.5},
    "run.resident_teachers": 1,
    "merge.strengths": [0.5],
    "student.optimizer.betas": [0.5, 0.6],
    "stages.*.optimizer.betas": [0.5, 0.6],
    "domains.*.teachers": {"t": 1.0},
    "domains.*.prefix": {"dataset": 1.0},
    "stages.*.domains": ["second"],
    "student.model.config": {"hidden_size": 16},
    "stages.*.from.config": {"hidden_size": 16},
    **{f"{section}.lora": None for section in ("student", "stages.*")},
    **{f"{section}.lora.targets": ["q_proj"] for section in ("student", "stages.*")},
    **{f"{section}.plateau": None for section in ("run", "stages.*")},
    **{f"{section}.plateau.ceiling": 75.0 for section in ("run", "stages.*")},
    **{f"{section}.tokenizer": "./tokenizer" for section in ("student.model", "stages.*.from")},
    **{f"{section}.chat_template": "chatml" for section in ("student.model", "stages.*.from")},
    "architectures": {"org/other": "./config.json"},
    "run.card_gib": 24.0,
    "domains.*.task.config": {"max_terms": 3},
    "domains.*.task.easy": {"max_terms": 2},
    "domains.*.task.filter": {"level": [4, "5"]},
    "domains.*.task.limit": 9,
    "domains.*.task.row": "./rows.py:row",
    "domains.*.task.drop_refused": 0.02,
    "domains.*.task.option_line": "({letter}) {option}",
    "domains.*.task.template_arguments": {"enable_thinking": False},
    "domains.*.task.message_keys": {"role": "from", "content": "value"},
    "domains.*.task.roles": {"human": "user"},
    "domains.*.task.shot_rows": [{"prompt": "a", "answer": "b"}],
    "domains.*.task.answer_names": "index",
    "domains.*.task.labels": {"0": "no"},
    "domains.*.task.verifier": "number",
    "loss.token_bound": 2.0,
    "domains.*.task.environment": "debug",
    "domains.*.task.args": {"agent": {"max_turns": 4}},
    "teachers.*.prompt.template": "Q: {prompt}",
}
LOSS_OF: dict[str, str] = (
    {
        "loss.beta": "jsd",
        "loss.by": "weighted_reverse_kl",
        "loss.power": "weighted_reverse_kl",
        "loss.skew": "skewed_kl",
        "loss.direction": "skewed_kl",
        "loss.payload": "full_reverse_kl",
        "loss.settings": "./loss.py:LOSS",
    }
    | dict.fromkeys(("loss.k", "loss.support", "loss.outside"), "topk_reverse_kl")
    | {"loss.token_bound": "jsd"}
)
"""The estimator of a setting that the one of EVERYTHING does not have."""
BESIDES: dict[str, Any] = {
    **{f"{section}.optimizer.schedule": {"decay_steps": 0} for section in ("student", "stages.*")},
    **{f"{section}.optimizer.decay_steps": {"schedule": "wsd"} for section in ("student", "stages.*")},
    "run.compute.equal_to": {"flops": None},
    "run.compute.times": {"flops": None, "equal_to": "mopd"},
    "domains.*.teacher": {"teachers": {}},
    "domains.*.evaluate_only": {"teachers": {}},
    "teachers.*.settings": {"kind": "./kind.py:KIND"},
    "domains.*.task.streaming": {"limit": 9},
    "domains.*.task.option_labels": {"options": "choices"},
    "domains.*.task.answer_names": {"options": "choices"},
    "domains.*.task.shots_split": {"shots": 2},
    "domains.*.task.continues": {"verifier": "python_tests"},
    "domains.*.task.function": {"verifier": "input_output", "tests": "cases"},
    "domains.*.task.sandbox": {"verifier": "python_tests"},
    "student.revision": {"model": "org/model"},
    "teachers.*.revision": {"model": "org/model"},
    "stages.*.revision": {"from": "org/model"},
    **{f"{section}.tokenizer_revision": {"tokenizer": "org/model"} for section in ("student.model", "stages.*.from")},
    "teachers.*.prompt.hint": {"template": "{hint} {prompt}"},
    "domains.*.task.args": {"environment": "verifiers:gsm8k"},
}
"""What else has to change in the same section for the other value to be valid."""


def unique_leaves() -> list[Leaf]:
    return list({leaf.path: leaf for leaf in leaves()}.values())


def other_value(leaf: Leaf, value: Any) -> Any:
    choices = getattr(leaf.field.annotation, "__args__", ())
    if leaf.path in OTHER:
        return OTHER[leaf.path]
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return next((choice for choice in choices if choice != value), "another")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.03
    return ["another"] if isinstance(value, list) else "another"


def concrete(path: str) -> str:
    """A path of EVERYTHING."""
    if path.removeprefix("domains.*.task.") in ("reasoning_gym", "config", "easy"):
        return path.replace("*", "third")
    if path.removeprefix("domains.*.task.") in EnvironmentSource.model_fields:
        return path.replace("*", "fourth")
    path = path.replace("domains.*.task.", "domains.first.task.").replace("domains.*", "domains.second")
    return path.replace("teachers.*", "teachers.t").replace("stages.*", "stages.s")


def everything(leaf: Leaf) -> Recipe:
    """The full recipe, with an estimator that has this leaf."""
    loss = {"estimator": LOSS_OF.get(leaf.path, EVERYTHING["loss"]["estimator"])}
    return Recipe.model_validate({**EVERYTHING, "loss": loss})


def change(leaf: Leaf) -> Recipe:
    """The full recipe with one leaf changed to another value."""
    tree = everything(leaf).model_dump(mode="json", by_alias=True)
    if leaf.path == "loss.estimator":
        tree["loss"] = {"estimator": "nll"}
        return Recipe.model_validate(tree)
    *above, last = concrete(leaf.path).split(".")
    section = tree
    for name in above:
        section = section[name]
    section[last] = other_value(leaf, section[last])
    section.update(BESIDES.get(leaf.path, {}))
    return Recipe.model_validate(tree)


@pytest.mark.parametrize("leaf", unique_leaves(), ids=lambda leaf: leaf.path)
def test_the_difference_names_a_changed_leaf(leaf: Leaf) -> None:
    before = everything(leaf)
    after = change(leaf)
    lines = diff_recipes(before, after)
    assert any(line.startswith(concrete(leaf.path)) for line in lines)
    assert diff_recipes(before, before) == []


def numeric(annotation: Any) -> bool:
    """Whether a leaf takes a number."""
    return annotation in (int, float) or any(numeric(part) for part in get_args(annotation))


@pytest.mark.parametrize(
    "leaf", [leaf for leaf in unique_leaves() if numeric(leaf.field.annotation)], ids=lambda x: x.path
)
def test_no_number_is_taken_that_nothing_has(leaf: Leaf) -> None:
    tree = everything(leaf).model_dump(mode="json", by_alias=True)
    *above, last = concrete(leaf.path).split(".")
    section = tree
    for name in above:
        section = section[name]
    for absurd in (1e30, 10**30):
        section[last] = absurd
        with pytest.raises(ValidationError):
            Recipe.model_validate(tree)


@pytest.mark.parametrize("leaf", unique_leaves(), ids=lambda leaf: leaf.path)
def test_every_leaf_is_documented_and_has_a_default_or_must_be_given(leaf: Leaf) -> None:
    assert leaf.field.description, f"{leaf.path} says nothing of itself"
    default = leaf.field.get_default(call_default_factory=True)
    assert leaf.field.is_required() or not (isinstance(default, float) and math.isnan(default))


READERS = [
    path
    for package in ("distill", "teachers", "rollouts", "recipes")
    for path in sorted((ROOT / package).rglob("*.py"))
    # Not what only tells of a recipe: a leaf must reach the run itself.
    if not path.name.startswith(("check", "plan", "cli", "survey")) and path.parent.name != "schema"
]


@functools.cache
def attributes_read() -> dict[str, set[str]]:
    """By file that knows a class of the schema: the names of the attributes it reads."""
    classes = {leaf.owner.__name__ for leaf in leaves()} | {"Recipe", "Study", "StudentSpec"}
    read: dict[str, set[str]] = {}
    for path in READERS:
        tree = ast.parse(path.read_text())
        known = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)}
        known |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if known & classes:
            read[str(path)] = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            }
    return read


THROUGH = {
    "revision": TeacherRecipe.reference,
    "tokenizer_revision": Architecture.tokenizer_reference,
    "evaluate_only": Recipe.trained_domains,
    "kind": TeacherRecipe.kind_name,
    "prefix": DomainRecipe.prefix_parts,
    "stages_seed": Recipe.seed_of_stages,
    "warmup_steps": AdamW.warm_up,
    "teacher": DomainRecipe.teacher_weights,
    "teachers": DomainRecipe.teacher_weights,
}
"""Leaves that the run reads through a property or a method of the schema."""


@pytest.mark.parametrize("leaf", unique_leaves(), ids=lambda leaf: leaf.path)
def test_every_leaf_is_read_by_what_runs(leaf: Leaf) -> None:
    """A leaf that no code reads is a lie. Checked by name, in the files that know the schema's classes."""
    attribute = leaf.attribute
    if leaf.attribute in THROUGH:
        through = THROUGH[leaf.attribute]
        getter = through.fget if isinstance(through, property) else through
        assert getter is not None
        assert f".{leaf.attribute}" in inspect.getsource(getter)
        attribute = getter.__name__
    readers = [name for name, attributes in attributes_read().items() if attribute in attributes]
    assert readers, f"nothing that runs reads `{leaf.path}`: make it matter, or take it out of the schema"


# ---- the editor's schema


@pytest.mark.parametrize("name", shipped_recipes(SHIPPED))
def test_shipped_files_fit_the_editor_schema(name: str) -> None:
    written = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    jsonschema.Draft202012Validator(editor_schema()).validate(written)


def test_the_editor_schema_refuses_an_unknown_key_and_a_wrong_type() -> None:
    validator = jsonschema.Draft202012Validator(editor_schema())
    assert not validator.is_valid({"stepz": 3})
    assert not validator.is_valid({"run": {"steps": "three"}})
    assert validator.is_valid({"extends": "smoke", "run": {"steps": 3}})


def test_the_editor_schema_takes_a_file_of_ones_own_where_it_takes_a_shipped_name() -> None:
    validator = jsonschema.Draft202012Validator(editor_schema())
    for section in (
        lambda name: {"method": name},
        lambda name: {"rollout": {"engine": name}},
        lambda name: {"teachers": {"t": {"kind": name}}},
    ):
        assert validator.is_valid(section("./own.py:ROW"))
        assert not validator.is_valid(section("nothing_shipped"))
    assert validator.is_valid({"method": "merge", "rollout": {"engine": "in_process"}})
    assert validator.is_valid({"teachers": {"t": {"kind": "served"}}, "track": {"sinks": ["./own.py:SINK"]}})
    assert not validator.is_valid({"track": {"sinks": ["wandb"]}})


def test_keys_at_follows_names_that_the_user_chooses() -> None:
    assert "prompts" in keys_at(("domains", "anything"))
    assert keys_at(("stages", "s", "from", "<mapping>")) == [
        "architecture",
        "config",
        "vocabulary",
        "tokenizer",
        "tokenizer_revision",
        "chat_template",
    ]
    assert keys_at(("run", "steps")) == []


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_a_shipped_recipe_says_how_long_it_warms_up(name: str) -> None:
    """So that its weights do not depend on what the default is; runs that train no student have none."""
    loaded = load(name, (), shipped=SHIPPED)
    runs = [loaded] if isinstance(loaded, Recipe) else [run.resolved.recipe for run in study_runs(loaded)]
    for recipe in runs:
        trained = [] if recipe.method in ("merge", "cascade") else [recipe.student.optimizer]
        for optimizer in [*trained, *(stage.optimizer for stage in recipe.stages.values())]:
            assert optimizer.warmup_steps is not None

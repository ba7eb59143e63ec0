"""Whatever a page writes of a recipe is one: every key that it names is a leaf, and takes the value that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from house_kit import REPOSITORY
from pydantic import BaseModel, ValidationError

from mopd.distill.recipe import (
    AdamW,
    DomainRecipe,
    EnvironmentSource,
    EvaluateRecipe,
    FaultRecipe,
    GymSource,
    LoRA,
    Recipe,
    RunRecipe,
    Source,
    StageRecipe,
    TeacherRecipe,
)
from mopd.distill.recipe.files import STUDY_KEYS
from mopd.distill.recipe.messages import keys_at, takes_chosen_names
from mopd.distill.recipe.study import Study, load
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.methods import METHODS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SECTIONS = (TeacherRecipe, DomainRecipe, StageRecipe, EvaluateRecipe, RunRecipe, AdamW, Source, GymSource, LoRA)
SECTIONS += (EnvironmentSource,)
"""Parts of a recipe that pages write alone, such as the stanza of a teacher."""
TOP = {*Recipe.model_fields, *STUDY_KEYS, "extends"}
OTHERS_KEYS = {"step", "format", "question", "text", "verifiers", "bfcl", "conversations", "program", "command"}
"""Keys of mappings that are no recipe: rows of data and of records, an environment's own name, a sweep of W&B."""
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
DOTTED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`")


def plain(tree: Any) -> Any:
    """A tree without what a page leaves out by dots, and without keys that `null` removes."""
    if isinstance(tree, dict):
        left = {key: value for key, value in tree.items() if "..." not in (key, value) and value is not None}
        return {key: plain(value) for key, value in left.items()}
    return [plain(entry) for entry in tree] if isinstance(tree, list) else tree


def refusals(model: type[BaseModel], tree: Any) -> list[str]:
    """What a model refuses in a part of a recipe; that more would have to be there is no refusal."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return [f"{problem['loc']}: {problem['msg']}" for problem in error.errors() if problem["type"] != "missing"]
    return []


def wrong(tree: dict[str, Any]) -> list[str]:
    """What is wrong with a mapping that a page shows: a recipe, a study, or a part of either."""
    tree = plain(tree)
    if tree.keys() <= TOP and not any(refusals(Recipe, part) for part in parts_of(tree)):
        return []
    if all(isinstance(value, dict) and "model" in value for value in tree.values()):
        return [problem for stanza in tree.values() for problem in refusals(TeacherRecipe, stanza)]
    tried = [refusals(model, tree) for model in SECTIONS]
    if tree.keys() <= TOP:
        tried.append([problem for part in parts_of(tree) for problem in refusals(Recipe, part)])
    return [] if [] in tried else [f"{tree} is no part of a recipe: {tried[-1]}"]


def parts_of(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A recipe's own keys, and those of each method of a study."""
    yield {key: value for key, value in tree.items() if key not in (*STUDY_KEYS, "extends")}
    yield from (tree.get("methods") or {}).values()


def mappings(page: Path) -> Iterator[dict[str, Any]]:
    """Every mapping that a page writes as a recipe has it: in blocks of YAML, in indented lines, and amid text."""
    text = page.read_text()
    blocks = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)  # those with a name are run by another test
    pieces = blocks.findall(text)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    pieces += re.findall(r"(?:^    [a-z_]+: \{.+\n(?:^     .+\n)*)+", prose, re.MULTILINE)
    pieces += [piece for piece in INLINE.findall(prose) if re.match(r"\{[a-z_]+: |[a-z_]+: \{", piece)]
    for piece in pieces:
        tree = yaml.safe_load(re.sub(r"^ *\.\.\.$", "", piece, flags=re.MULTILINE))
        if isinstance(tree, dict) and not OTHERS_KEYS & tree.keys() and '{"' not in piece:
            yield tree


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_writes_of_a_recipe_is_taken(page: Path) -> None:
    assert [problem for tree in mappings(page) for problem in wrong(tree)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_leaf_that_a_page_names_by_its_path_is_there(page: Path) -> None:
    unknown = []
    for path in DOTTED.findall(page.read_text()):
        *above, leaf = path.split(".")
        if above[0] in Recipe.model_fields and not takes_chosen_names(tuple(above)):
            unknown += [] if leaf in keys_at(tuple(above)) else [path]
    assert unknown == []


def test_the_test_tells_right_from_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    wrong_ones = ("`run: {stepz: 3}`", "`{model: self, adaptor: x}`", "`loss: {estimator: k3}`", "`run: {steps: 0}`")
    for text in (*wrong_ones, "```yaml\nteachers:\n  a: {model: b, replica: 2}\n```\n", "    run: {stepz: 3}\n"):
        page.write_text(text)
        assert [problem for tree in mappings(page) for problem in wrong(tree)], text
    page.write_text("`run: {steps: 3}` `{model: self}` `{cost: 3}`\n\n    stop: {kl: 1.0, evaluations: 2}\n")
    assert [bool(wrong(tree)) for tree in mappings(page)] == [False, False, False, True]


def test_the_recipe_that_the_readme_shortens_says_what_it_shows() -> None:
    (block,) = re.findall(r"```yaml\n(name: quickstart\n.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    shown = plain(yaml.safe_load(re.sub(r"^ *\.\.\.$", "", block, flags=re.MULTILINE)))
    whole = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text())

    def differences(part: Any, of: Any, path: str) -> list[str]:
        if not isinstance(part, dict) or not isinstance(of, dict):
            return [] if part == of else [f"{path} is {part}, and {of} in the recipe"]
        return [line for key in part for line in differences(part[key], of.get(key), f"{path}.{key}")]

    assert differences(shown, whole, "quickstart") == []


def test_the_study_of_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(extends: .*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "rates.yaml"
    path.write_text(block)
    study = load(str(path), shipped=SHIPPED)
    assert isinstance(study, Study)
    assert [child.name for child in study.children] == [
        f"{name}-{seed}" for seed in (0, 1, 2) for name in ("slow", "fast")
    ]


def test_methods_that_the_page_lists_are_all_that_there_are() -> None:
    page = (REPOSITORY / "docs" / "recipe.md").read_text()
    table = page.partition("| method | who writes | what is learnt |\n|---|---|---|\n")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(METHODS)


def test_defaults_that_pages_tell_are_those_of_the_schema() -> None:
    line = re.findall(
        r"^faults: (\{.*\}) +# the defaults$", (REPOSITORY / "docs" / "teachers.md").read_text(), re.MULTILINE
    )
    assert yaml.safe_load(line[0]) == FaultRecipe().model_dump()
    page = (REPOSITORY / "docs" / "agents.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE))
    fields = EnvironmentSource.model_fields
    assert {name: int(value) for name, value in shown.items()} == {name: fields[name].default for name in shown}
    assert len(shown) == 4


def test_a_sweep_changes_leaves_that_are_there() -> None:
    (block,) = re.findall(r"```yaml\n(command:.*?)```", (REPOSITORY / "docs" / "files.md").read_text(), re.DOTALL)
    for path in yaml.safe_load(block)["parameters"]:
        *above, leaf = path.split(".")
        assert leaf in keys_at(tuple(above)), path

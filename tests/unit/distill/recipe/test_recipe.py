"""Recipes as files: YAML, extends, overrides, messages, round trips, differences, fingerprints."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_kit import SMALL, load, refused, write

from mopd.distill.recipe import study as recipe_study
from mopd.distill.recipe.files import diff_recipes, dump_recipe, load_recipe, shipped_recipes
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED

# ---- YAML


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-3", 0.001), ("5.0e-4", 0.0005), ("1E+1", 10.0), (".5", 0.5), ("+2", 2.0), ("1e5", 100000.0)],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, written: str, meant: float) -> None:
    recipe = load(tmp_path, SMALL + f"loss: {{estimator: policy_gradient, advantage_clip: {written}}}\n")
    assert recipe.loss.advantage_clip == meant  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "1_000", "12:30", "'007'", "~user"])
def test_text_that_older_yaml_reads_as_something_else_stays_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, SMALL + f"description: {text}\n").description == text.strip("'")


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    text = "name: small\nstudent: {model: ./student\ndomains: [\n"
    # The flow mapping that is open since line 2 is noticed on line 3.
    message = refused(tmp_path, text)
    assert "line 3" in message
    assert "recipe.yaml" in message


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALL + "run:\n  steps: 1\n  save_every: 2\n  steps: 3\n")
    assert "`steps` stands twice" in message
    assert "line 9" in message  # the first
    assert "line 11" in message  # the second


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "recipe.yaml is empty" in refused(tmp_path, text)


@pytest.mark.parametrize("text", ["- name: small\n", "small\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "a recipe is a mapping" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"name: \x00x\n", b"name: " + b"9" * 5000 + b"\n", b"a: !!python/x"]
)
def test_unreadable_bytes_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(str(path), shipped=SHIPPED)


def test_an_unknown_shipped_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `quickstart`"):
        load_recipe("quikstart", shipped=SHIPPED)


@pytest.mark.parametrize("path", ["./nowhere.yaml", "nowhere.yaml", "/nowhere/at.yml", "."])
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(UserError, match=path.removeprefix("./")):
        load_recipe(path, shipped=SHIPPED)


# ---- extends


def test_a_child_lies_over_its_parent_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "parent", SMALL + "run: {steps: 7, save_every: 3}\nseed: 5\n")
    child = write(tmp_path, "child", "extends: ./parent.yaml\nname: child\nrun: {steps: 9}\n")
    recipe = load_recipe(child, shipped=SHIPPED)
    assert (recipe.name, recipe.seed, recipe.run.steps, recipe.run.save_every) == ("child", 5, 9, 3)


def test_extends_takes_a_shipped_name_and_chains(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "middle", "extends: smoke\nname: middle\nrun: {steps: 2}\n")
    child = write(tmp_path / "deep", "child", "extends: ../middle.yaml\nname: child\n")
    recipe = load_recipe(child, shipped=SHIPPED)
    smoke = load_recipe("smoke", shipped=SHIPPED)
    assert recipe.run.steps == 2
    assert recipe.stages == smoke.stages


def test_null_takes_an_inherited_key_away(tmp_path: Path) -> None:
    write(tmp_path, "parent", SMALL + "  code: {model: ./code}\nrun: {steps: 7}\n")
    child = write(tmp_path, "child", "extends: ./parent.yaml\nteachers: {code: null}\nrun: null\n")
    recipe = load_recipe(child, shipped=SHIPPED)
    assert list(recipe.teachers) == ["math"]
    assert recipe.run.steps == 200  # the schema's default


def test_another_kind_replaces_instead_of_merging(tmp_path: Path) -> None:
    write(tmp_path, "parent", SMALL + "loss: {estimator: policy_gradient, gate: [0.5, 2]}\n")
    child = write(tmp_path, "child", "extends: ./parent.yaml\nloss: {estimator: full_reverse_kl}\n")
    assert load_recipe(child, shipped=SHIPPED).loss.estimator == "full_reverse_kl"


def test_extending_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: ./b.yaml\n")
    write(tmp_path, "b", "extends: ./a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(tmp_path / "a.yaml"), shipped=SHIPPED)


@pytest.mark.parametrize(
    ("extends", "expected"), [("[a, b]", "must be one recipe"), ("smok", "smoke"), ("./x.yaml", "x.yaml")]
)
def test_what_cannot_be_extended_is_named(tmp_path: Path, extends: str, expected: str) -> None:
    assert expected in refused(tmp_path, f"extends: {extends}\nname: x\n")


# ---- overrides


def test_overrides_are_typed_as_yaml_and_their_order_does_not_matter(tmp_path: Path) -> None:
    changes = ["loss.gate=[0.5, 2]", "loss.estimator=policy_gradient", "student.optimizer.lr=1e-3", "device=cpu"]
    first, second = load(tmp_path, SMALL, *changes), load(tmp_path, SMALL, *reversed(changes))
    assert first == second
    assert first.student.optimizer.lr == 0.001
    assert first.loss.gate == (0.5, 2.0)  # pyright: ignore[reportAttributeAccessIssue]


def test_an_override_may_add_a_whole_domain_and_take_one_away(tmp_path: Path) -> None:
    recipe = load(tmp_path, SMALL, "domains.code={task: list_programs, teacher: math}", "domains.math=null")
    assert list(recipe.domains) == ["code"]


def test_an_override_may_turn_a_name_into_a_mapping(tmp_path: Path) -> None:
    recipe = load(tmp_path, SMALL, "student.model={architecture: llama, config: {hidden_size: 8}}")
    assert recipe.student.model.config == {"hidden_size": 8}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.stps=3", "did you mean `run.steps`"),
        ("rn.steps=3", "did you mean `run`"),
        ("domains.mth.prompts=3", "did you mean `math`"),
        ("steps=3", "did you mean `run.steps`"),
        ("run.steps", "key=value"),
        ("=3", "key=value"),
        ("run..steps=3", "key=value"),
        ("run.steps=", "gives no value"),
        ("run.steps=[", "not readable as YAML"),
        ("run.steps.more=3", "`run.steps` must be a whole number"),
        ("domains=null", "`domains` is missing"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refused(tmp_path, SMALL, override)


def test_one_override_given_twice_is_refused(tmp_path: Path) -> None:
    assert "`run.steps` is given 2 times" in refused(tmp_path, SMALL, "run.steps=3", "run.steps=4")


# ---- writing, differences and fingerprints


@pytest.mark.parametrize("name", shipped_recipes(SHIPPED))
def test_a_shipped_recipe_survives_writing_and_reading(tmp_path: Path, name: str) -> None:
    read = recipe_study.load(name, shipped=SHIPPED)
    assert read.name == name
    made = [child.recipe for child in read.children] if isinstance(read, recipe_study.Study) else [read]
    assert all(load(tmp_path, dump_recipe(recipe)) == recipe for recipe in made)


@pytest.mark.parametrize("text", ["1e-3", "no", "null", "007", "a: b", "# x", "", "ü\n", "12:30", "2024-01-01", "0x1f"])
def test_any_text_survives_writing_and_reading(tmp_path: Path, text: str) -> None:
    recipe = load(tmp_path, SMALL).model_copy(update={"description": text})
    assert load(tmp_path, dump_recipe(recipe)).description == text


def test_differences_are_lines_of_leaves(tmp_path: Path) -> None:
    old = load(tmp_path, SMALL, "run.steps=200")
    new = load(tmp_path, SMALL, "run.steps=300", "teachers.code={model: ./c}", "domains.math.share=2")
    lines = diff_recipes(old, new)
    assert lines[:2] == ["domains.math.share: 1.0 -> 2.0", "run.steps: 200 -> 300"]
    assert 'teachers.code.model: (not there) -> "./c"' in lines
    assert 'teachers.code.dtype: (not there) -> "auto"' in lines
    assert all(line.startswith("teachers.code.") for line in lines if line not in lines[:2])
    assert diff_recipes(old, old) == []


def test_two_recipes_of_one_content_do_not_differ(tmp_path: Path) -> None:
    shuffled = "domains:\n  math: {teacher: math, task: arithmetic}\n" + SMALL.replace(
        "domains:\n  math: {task: arithmetic, teacher: math}\n", ""
    )
    assert diff_recipes(load(tmp_path, SMALL), load(tmp_path, shuffled)) == []


def test_the_older_name_of_the_rollout_engine_is_read_as_the_one_of_today(tmp_path: Path) -> None:
    today = load(tmp_path, SMALL)
    older = load(tmp_path, dump_recipe(today).replace("engine: in_process", "engine: transformers"))
    assert older.rollout.engine == "in_process"
    assert diff_recipes(older, today) == []


def test_a_file_of_ones_own_stands_where_a_shipped_name_does(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        SMALL,
        "method=./own.py:METHOD",
        "rollout.engine=../own.py:ENGINE",
        "teachers.math={model: ./math, kind: /own.py:KIND, settings: {table: words, scale: 2, warm: true, rate: 0.5}}",
        "track.sinks=[./own.py:SINK]",
    )
    teacher = recipe.teachers["math"]
    assert (recipe.method, recipe.rollout.engine) == ("./own.py:METHOD", "../own.py:ENGINE")
    assert (teacher.kind_name, recipe.track.sinks) == ("/own.py:KIND", ("./own.py:SINK",))
    assert [type(value) for value in teacher.settings.values()] == [str, int, bool, float]
    assert load(tmp_path, dump_recipe(recipe)) == recipe


def test_the_kind_of_a_teacher_is_told_from_its_keys(tmp_path: Path) -> None:
    def kind(stanza: str) -> str:
        return load(tmp_path, SMALL, f"teachers.math={{model: ./math, {stanza}}}").teachers["math"].kind_name

    assert kind("dtype: float32") == "checkpoint"
    assert kind("endpoint: 'http://there:8000/v1'") == "served"
    assert kind("scorer: ./own.py:Scorer") == "custom"


def test_an_older_recipe_of_sgd_is_read_although_it_writes_what_only_adamw_reads(tmp_path: Path) -> None:
    today = load(tmp_path, SMALL, "student.optimizer={name: sgd, lr: 0.5, schedule: constant}")
    assert "betas" not in dump_recipe(today)
    idle = "betas: [0.9, 0.98]\n    eps: 1.0e-8\n    weight_decay: 0"
    older = dump_recipe(today).replace("name: sgd\n", f"name: sgd\n    {idle}\n")
    assert "betas" in older
    assert load(tmp_path, older) == today

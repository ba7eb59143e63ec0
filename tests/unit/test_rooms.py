"""The plan of the house: rooms, what they import, and what their functions take. CONTRIBUTING.md says it in words."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from house_kit import REPOSITORY, Source, askers, circles, read, read_all, takers, vague_names

# Ceilings: a change that would raise one takes less, and does not move it.
MAX_RECIPE_READERS = 25  # functions that take the whole recipe, or read one that something else carries
MAX_RESOLVED_READERS = 40  # the same of what it means on this machine
READERS_OF_RUNS = ("recipes/compare/", "recipes/report/")  # the recipe of a finished run is data, from its recipe.yaml
MAX_FILES_WITH_VAGUE_NAMES = 0
MAX_FILES = 15  # of a folder


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_all()


def test_who_takes_a_type_is_seen_in_unions_containers_and_strings() -> None:
    for annotation in ("Recipe", "Recipe | None", "'Recipe'", "schema.Recipe", "Mapping[str, Recipe]"):
        assert takers(read("a.py", f"class A:\n    def f(self, *, recipe: {annotation}) -> None: ..."), "Recipe")
    assert not takers(read("a.py", "def f(student: StudentRecipe) -> Recipe: ..."), "Recipe")


def test_functions_take_what_they_need_and_not_the_recipe(sources: list[Source]) -> None:
    assert askers(read("a.py", "class A:\n    def f(self) -> None:\n        self._recipe.seed"), "recipe")
    assert not askers(read("a.py", "def f(resolved: Resolved) -> None:\n    resolved.recipe.seed"), "recipe")
    assert askers(read("a.py", "def f(job: Job) -> None:\n    job.resolved.device"), "resolved")
    of_runs = [source for source in sources if not source.path.startswith(READERS_OF_RUNS)]
    for name, most in (("Recipe", MAX_RECIPE_READERS), ("Resolved", MAX_RESOLVED_READERS)):
        readers = [taker for source in sources for taker in takers(source, name)]
        readers += [asker for source in of_runs for asker in askers(source, name.lower())]
        assert len(readers) <= most, "\n".join(readers)


def test_a_circle_is_seen_under_type_checking_and_inside_functions() -> None:
    a = read("distill/a.py", "if TYPE_CHECKING:\n    from mopd.distill.b import B")
    b = read("distill/b.py", "def f() -> None:\n    from mopd.distill import c")
    c = read("distill/c.py", "import mopd.distill.a")
    assert circles([a, b, c]) == [["mopd.distill.a", "mopd.distill.b", "mopd.distill.c"]]
    assert circles([a, b]) == []


def test_no_module_imports_itself_by_a_detour(sources: list[Source]) -> None:
    ways = circles(sources)
    assert not ways, "\n".join(" -> ".join([*way, way[0]]) for way in ways)


def test_a_room_holds_few_files_and_says_what_is_in_it(sources: list[Source]) -> None:
    files = Counter(str(Path(source.path).parent) for source in sources)
    assert {room: n for room, n in files.items() if n > MAX_FILES} == {}
    mute = [s.path for s in sources if s.path.endswith("/__init__.py") and ast.get_docstring(s.tree) is None]
    assert mute == []


def test_names_say_what_a_value_is(sources: list[Source]) -> None:
    vague = {source.path: names for source in sources if (names := vague_names(source))}
    assert len(vague) <= MAX_FILES_WITH_VAGUE_NAMES, "\n".join(name for names in vague.values() for name in names)


def test_tests_mirror_the_rooms_and_no_two_have_one_name() -> None:
    unit = REPOSITORY / "tests" / "unit"
    paths = sorted((REPOSITORY / "tests").rglob("*.py"))
    twice = [name for name, n in Counter(path.name for path in paths).items() if n > 1]
    assert twice == []
    rooms = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert [room for room in rooms if not (REPOSITORY / room).is_dir()] == []


def test_a_test_imports_kits_and_no_other_test() -> None:
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith("test_"), f"{path}:{node.lineno}"


def test_a_public_class_or_type_has_a_name_of_its_own(sources: list[Source]) -> None:
    defined: dict[str, list[str]] = {}
    for source in sources:
        for node in source.tree.body:
            match node:
                case ast.ClassDef(name=name):
                    pass
                case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
                    pass
                case _:
                    continue
            if not name.startswith("_"):
                defined.setdefault(name, []).append(source.path)
    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}

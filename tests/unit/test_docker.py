"""Dockerfile and the other files of the repository's top that no run reads: what they name is there."""

from __future__ import annotations

import re
import tomllib

import yaml
from house_kit import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of each logical line."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in logical]


def test_the_image_is_made_of_files_that_exist_and_of_all_that_the_wheel_needs() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= known
    copied = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    wheel = {"pyproject.toml", "README.md", "LICENSE", "mopd", "distill", "teachers", "rollouts", "recipes"}
    assert wheel <= set(copied)
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert [source for source in copied if source in ignored] == []


def test_both_targets_are_there_are_nobodys_root_and_pin_what_they_install() -> None:
    assert re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE) == ["base", "cpu", "gpu"]
    for target in ("cpu", "gpu"):
        stage = DOCKERFILE.partition(f"FROM base AS {target}\n")[2].partition("\nFROM ")[0]
        assert "USER mopd" in stage
        assert 'ENTRYPOINT ["mopd"]' in stage
        assert "--constraint constraints.txt" in stage
    base = re.findall(r"^FROM (\S+) AS base$", DOCKERFILE, re.MULTILINE)[0]
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert base.startswith(f"python:{required.removeprefix('>=')}-")


def test_the_citation_has_the_packages_version_and_licence() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    readme = (REPOSITORY / "README.md").read_text()
    assert all(reference["url"] in readme for reference in citation["references"])


def test_issue_forms_are_readable_and_ask_for_something() -> None:
    forms = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for path in forms:
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= form.keys()
            assert any(part.get("validations", {}).get("required") for part in form["body"])

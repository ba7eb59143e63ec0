"""Dockerfile and the other files of the repository's top that no run reads: what they name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from house_kit import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


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
        assert "USER 1000" in stage, "who looks whether it is root's knows no names"
        assert 'ENTRYPOINT ["mopd"]' in stage
        assert "--constraint constraints.txt" in stage
    base = re.findall(r"^FROM (\S+) AS base$", DOCKERFILE, re.MULTILINE)[0]
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert base.startswith(f"python:{required.removeprefix('>=')}-")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), "--no-color", REPOSITORY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_image_is_built_in_an_order_that_can_be_and_has_all_that_its_commands_need() -> None:
    """No engine builds it here: these are the mistakes that a build would show."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            image, _, stage = rest.split()
            assert image in stages or re.fullmatch(r"[a-z]+:[a-z0-9.-]+", image), f"{image} has no tag"
            stages[stage] = list(stages.get(image, ()))
        stages[stage].append((name, rest))
    for target in ("cpu", "gpu"):
        names = [name for name, _ in stages[target]]
        commands = [rest for name, rest in stages[target] if name == "RUN"]
        (install,) = [place for place, (_, rest) in enumerate(stages[target]) if rest.startswith("pip install")]
        assert max(place for place, name in enumerate(names) if name == "COPY") < install
        assert install < names.index("USER"), "what is installed lies in root's folders"
        assert any("--uid 1000 mopd" in command and "chown mopd /work" in command for command in commands)
        workdirs = [rest for name, rest in stages[target] if name == "WORKDIR"]
        assert workdirs == ["/source", "/work"], "constraints.txt and . are in the first, runs in the second"
        assert names.count("ENTRYPOINT") == names.count("CMD") == 1
    for apt in [rest for name, rest in instructions() if name == "RUN" and "apt-get install" in rest]:
        assert "apt-get update" in apt
        assert "--no-install-recommends" in apt
        assert apt.endswith("rm -rf /var/lib/apt/lists/*")


def test_what_an_image_installs_is_what_the_package_offers() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    extras = {
        extra for rest in installs for group in re.findall(r"\.\[([\w,-]+)\]", rest) for extra in group.split(",")
    }
    assert extras <= project["optional-dependencies"].keys() - {"dev"}
    indexes = [re.findall(r"--extra-index-url (\S+)", rest) for rest in installs]
    assert indexes == [["https://download.pytorch.org/whl/cpu"], []], "the GPU's torch is PyPI's"


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
            assert {part["type"] for part in form["body"]} <= {
                "markdown",
                "textarea",
                "input",
                "dropdown",
                "checkboxes",
            }
            assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown")
            names = [part["id"] for part in form["body"]]
            assert len(set(names)) == len(names)


def test_templates_name_files_commands_and_targets_that_there_are() -> None:
    github = REPOSITORY / ".github"
    text = "".join(path.read_text() for path in github.rglob("*") if path.is_file())
    written = (REPOSITORY / "docs" / "files.md").read_text()
    assert set(re.findall(r"\b[a-z]+\.(?:jsonl?|yaml)\b", text)) - set(re.findall(r"`([\w./]+)`", written)) == set()
    assert [page for page in re.findall(r"\b[A-Z]+\.md\b", text) if not (REPOSITORY / page).exists()] == []
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets)


def test_release_notes_have_one_heading_a_version_and_the_newest_is_the_packages_or_unreleased() -> None:
    versions = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    released = [heading.split()[0] for heading in versions if heading != "Unreleased"]
    assert versions[0] == "Unreleased" or released[0] == version
    assert len(set(released)) == len(released)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", number) for number in released)

"""The wheel, and `mopd` in a folder where the user has `recipes` and `distill` of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("mopd", "distill", "teachers", "rollouts", "recipes")
RAISES = 'raise RuntimeError("a file of the user\'s own, which nothing of mopd may import")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building writes into its tree."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        built,
        source,
    ]
    subprocess.run([*command, "-w", built, source], check=True, cwd=source)
    (file,) = built.glob("mopd-*.whl")
    return file


def test_the_wheel_holds_mopd_alone_and_all_of_it(wheel: Path) -> None:
    entries = {entry.filename: entry for entry in zipfile.ZipFile(wheel).infolist()}
    assert {name.split("/")[0] for name in entries if ".dist-info/" not in name} == {"mopd"}
    assert all(entry.external_attr >> 28 != 0xA for entry in entries.values()), "a symbolic link"
    shipped = [
        f"mopd/{path.relative_to(ROOT)}"
        for folder in FOLDERS[1:]
        for pattern in ("*.py", "*.yaml", "*.json", "*.j2", "*.js")
        for path in (ROOT / folder).rglob(pattern)
    ]
    assert {"mopd/__init__.py", *shipped} == {name for name in entries if ".dist-info/" not in name}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with files of their own that are called as the folders of this repository."""
    (tmp_path / "recipes").mkdir()
    for name in ("recipes/__init__.py", "distill.py", "teachers.py", "rollouts.py"):
        (tmp_path / name).write_text(RAISES)
    return tmp_path


def checked(command: list[str], folder: Path, path: str) -> str:
    """What `mopd check smoke` says in a folder, with ``path`` as PYTHONPATH."""
    settings = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([*command, "check", "smoke"], cwd=folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_checks_a_recipe_beside_the_users_own_recipes(
    wheel: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("target")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True)
    where = [sys.executable, "-c", "import mopd; print(mopd.__file__)"]
    settings = {**os.environ, "PYTHONPATH": f".:{target}"}
    said = subprocess.run(where, cwd=folder, env=settings, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(target / "mopd" / "__init__.py")
    main = [sys.executable, "-c", "from mopd.recipes.cli import main; main()"]
    assert "smoke: every check passed" in checked(main, folder, f".:{target}")


def test_the_installed_command_checks_a_recipe_beside_the_users_own_recipes(folder: Path) -> None:
    command = Path(sys.executable).parent / "mopd"
    if not command.is_file():
        pytest.skip("the package is not installed here; `make install` does it")
    assert "smoke: every check passed" in checked([str(command)], folder, ".")

"""The wheel, `mopd` in a folder where the user has `recipes` and `distill` of their own, and what is pinned where."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from house_kit import read_all
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mopd.distill.tracking.tracker_process import TRACKERS

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


LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([^#=\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def locked_versions() -> dict[str, set[str]]:
    """Of every package in uv.lock but mopd."""
    versions: dict[str, set[str]] = {}
    for package in LOCK["package"]:
        if package["name"] != "mopd":
            versions.setdefault(package["name"], set()).add(package["version"])
    return versions


def test_uv_locks_the_versions_that_pip_is_constrained_to() -> None:
    versions = locked_versions()
    assert {name: versions.get(name) for name in PINNED} == {name: {version} for name, version in PINNED.items()}


def test_the_lock_is_of_todays_requirements_and_pythons() -> None:
    (own,) = [package for package in LOCK["package"] if package["name"] == "mopd"]
    declared = {Requirement(text) for text in PROJECT["project"]["dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"]
    declared |= {Requirement(f"{text}; extra == '{extra}'") for extra, texts in extras.items() for text in texts}

    def as_requirement(entry: dict[str, Any]) -> Requirement:
        extras = f"[{','.join(entry['extras'])}]" if "extras" in entry else ""
        marker = f"; {entry['marker']}" if "marker" in entry else ""
        return Requirement(f"{entry['name']}{extras}{entry.get('specifier', '')}{marker}")

    assert {as_requirement(entry) for entry in own["metadata"]["requires-dist"]} == declared
    assert LOCK["requires-python"] == PROJECT["project"]["requires-python"]
    assert all(
        package["source"].get("registry", "https://pypi.org/simple") == "https://pypi.org/simple"
        for package in LOCK["package"]
    )


def download_bytes(environment: dict[str, str], *, leave_out: re.Pattern[str]) -> int:
    """Of the wheels that `make install` brings, as uv.lock has them, for CPython 3.11 on Linux."""
    packages = {package["name"]: package for package in LOCK["package"]}
    own = packages["mopd"]
    todo = [*own["dependencies"], *own["optional-dependencies"]["dev"]]
    seen: dict[tuple[str, str], int] = {}
    fits = re.compile(r"-(cp311-cp311|cp3\d+-abi3|py[23.py]*-none)-(any|.*manylinux\w*_x86_64.*)\.whl$")
    while todo:
        dependency = todo.pop()
        name, extras = dependency["name"], dependency.get("extra", [])
        if "marker" in dependency and not Marker(dependency["marker"]).evaluate(environment):
            continue
        for extra in ["", *extras]:
            if (name, extra) in seen:
                continue
            package = packages[name]
            sizes = [wheel["size"] for wheel in package.get("wheels", []) if fits.search(wheel["url"])]
            source = package.get("sdist", {}).get("size", 0)
            seen[name, extra] = 0 if extra or leave_out.match(name) else max(sizes, default=source)
            todo += package["optional-dependencies"][extra] if extra else package.get("dependencies", [])
    return sum(seen.values())


def test_make_says_what_an_install_downloads() -> None:
    environment = {"python_version": "3.11", "python_full_version": "3.11.9", "platform_machine": "x86_64"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    (line,) = re.findall(r"^DOWNLOADS = .*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    _, others, everything = (float(number) for number in re.findall(r"([\d.]+) GB", line))
    of_torch = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
    assert download_bytes(environment, leave_out=of_torch) / 1e9 == pytest.approx(others, abs=0.1)
    assert download_bytes(environment, leave_out=re.compile("$")) / 1e9 == pytest.approx(everything, abs=0.3)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_takes_the_first_supported_python_that_runs(tmp_path: Path) -> None:
    names = {"python3.11": "#!/bin/sh\necho not switched on >&2\nexit 127\n", "python3.13": "#!/bin/sh\nexit 0\n"}
    for name, text in names.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    make = [str(shutil.which("make")), "--dry-run", "--always-make", "install"]
    done = subprocess.run(make, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert "python3.13 -m venv .venv" in done.stdout
    (tmp_path / "python3.13").unlink()
    make.remove("--dry-run")
    done = subprocess.run(
        [*make, "INSTALLED=nowhere"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no Python 3.11 to 3.13 runs here as any of python3.11" in done.stdout


INSTALLED_APART = {"bfcl_eval"}
"""It pins an old numpy, and is installed without what it asks for; see docs/agents.md."""


def test_every_package_that_is_imported_is_a_requirement() -> None:
    """What another requirement happens to bring along may be gone with its next version."""
    distributions, imported = packages_distributions(), set()
    for source in read_all():
        for node in ast.walk(source.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= sys.stdlib_module_names | {"mopd"} | TRACKERS.keys() | INSTALLED_APART
    project = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    required = {canonicalize_name(Requirement(text).name) for text in texts} | {"pydantic-core"}  # pydantic pins it
    needed = {name: {canonicalize_name(package) for package in distributions.get(name, [name])} for name in imported}
    assert {name: packages for name, packages in needed.items() if not packages & required} == {}

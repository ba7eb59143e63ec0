"""A run's folder before it is claimed: can it be written, whose is it; and what is noted there: recipe, environment."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mopd.distill.errors import Interrupted, RunError, UserError
from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import diff_recipes, dump_recipe, load_recipe
from mopd.distill.recipe.plugins import plugin_digests
from mopd.distill.storage import claim, is_claimed, write_atomic
from mopd.recipes.resolve.damage import read_marker

RECIPE = "recipe.yaml"
STUDY = "study.json"
"""Lies in the folder of a study, and names its runs."""
DATA = "data.json"
"""What was read of every dataset: by domain, a split each with its version, its rows, and those that were left out."""
FIRST_SANDBOX = "whitelist"
"""Where programs were run before there was another, and nothing was noted."""
BUDGET = "compute.json"
"""Lies in the folder of a run that may spend what another of its study took: those FLOPs, and whose."""
OWN = "own.json"
ENDED = "ended.json"
"""Lies in the folder of a run that was interrupted or broke, until it goes on: how it ended, why and when."""
SHOWN_DIFFERENCES = 20
MAY_DIFFER = re.compile(
    r"trials\b|description\b|faults\.|run\.(resident_teachers|niceness)\b|rollout\.vllm\.(python|test_draws|transport)\b"
    r"|teachers\.[^.]+\.(replicas|api_key_env)\b"
    r"|domains\.[^.]+\.task\.(revision|sandbox)\b"  # data.json says which rows it stood for, and which was taken
    r"|(student|teachers\.[^.]+|stages\.[^.]+)(\.(model|from))?\.(tokenizer_)?revision\b"  # models.json has the commits
    r"|teachers\.[^.]+\.endpoint: \"?http.* -> \"?http"  # a server may move
)
"""Keys that change no number of a run: whoever resumes it may change them."""
LAYOUT_KEYS = re.compile(r"student\.engine\.(ranks|gpus|zero_stage|expert_parallel|microbatch_tokens|packing)\b")
"""Keys that say how the student is spread: they change numbers by rounding alone, and may be changed with a word."""


def note_recipe(recipe: Recipe, out: Path) -> None:
    """Write down what the folder belongs to: the recipe as resolved, and a hash of every own Python file it names."""
    write_atomic(out / RECIPE, dump_recipe(recipe))
    if own := plugin_digests(recipe.model_dump(mode="json")):
        write_atomic(out / OWN, json.dumps(own, indent=2) + "\n")


def noted_sandbox(splits: Sequence[Mapping[str, Any]]) -> str | None:
    """Where programs of a domain are run, of its splits in :data:`DATA`; None where none are, or nothing is noted."""
    return next((noted["sandbox"] for noted in splits if "sandbox" in noted), None)


def runs_of_study(folder: Path) -> list[Path]:
    """The folders of the runs that a study's :data:`STUDY` names, in its order.

    Raises:
        UserError: the file cannot be read, or does not name runs.
    """
    path = folder / STUDY
    content: Any = None
    reason = "it names no runs"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError:  # no text, or no JSON
        reason = "it is not JSON"
    if not isinstance(content, dict) or not _are_names(content.get("runs")):
        raise UserError(
            f"{path} is damaged: {reason}; name the folders of its runs instead, or give the `mopd run` of the study "
            "again, which writes it anew"
        )
    return [folder / name for name in content["runs"]]


def _are_names(runs: Any) -> bool:
    """Whether they are names of folders beside a study's file, none of which leads elsewhere."""
    return isinstance(runs, list | dict) and all(
        isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name for name in runs
    )


RunState: TypeAlias = Literal["finished", "running", "interrupted", "broken", "killed", "not begun"]
"""How a run stands. Killed: nobody runs in its folder, and nothing says how it ended."""


@dataclass(frozen=True, slots=True)
class RunStanding:
    """How a run stands, and why it ended where it was interrupted or broke."""

    state: RunState
    why: str


def note_end(out: Path, error: BaseException) -> None:
    """Write down how a run ended that is not finished."""
    interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
    why = str(error).strip() or type(error).__name__
    if not isinstance(error, Interrupted | KeyboardInterrupt | RunError | UserError | OSError):
        why = f"{type(error).__name__}: {why}"
    how: RunState = "interrupted" if interrupted else "broken"
    content = {"format": 1, "how": how, "why": why, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomic(out / ENDED, json.dumps(content, indent=2) + "\n")


def forget_end(out: Path) -> None:
    """The run goes on."""
    (out / ENDED).unlink(missing_ok=True)


def standing(out: Path) -> RunStanding:
    """How the run in ``out`` stands, as far as its folder tells on this machine."""
    if read_marker(out):
        return RunStanding("finished", "")
    try:
        ended = json.loads((out / ENDED).read_text())
        return RunStanding("interrupted" if ended["how"] == "interrupted" else "broken", str(ended["why"]))
    except (OSError, ValueError, KeyError, TypeError):  # it is not there, or half written by a full disk
        pass
    if is_claimed(out):
        return RunStanding("running", "")
    begun = (out / "metrics.jsonl").exists() or (out / ".lock").exists()
    return RunStanding("killed" if begun else "not begun", "")


def refuse_changed_recipe(recipe: Recipe, out: Path) -> list[str]:
    """Refuse to go on in a folder that another recipe was begun in, or the same with other Python files of its own.

    Returns:
        A sentence that says how the student is spread now that it was not as the run began, if it is.

    Raises:
        UserError: with every leaf that differs, and what to do.
    """
    path = out / RECIPE
    if not path.is_file():
        return []
    try:
        begun = load_recipe(str(path.resolve()), shipped=out)
    except UserError as error:
        first = f"{path} is no recipe of this version of mopd; give another folder with --out, or --restart"
        raise UserError(first, *error.problems) from error
    different = [line for line in diff_recipes(begun, recipe) if not MAY_DIFFER.match(line)]
    moved = [line for line in different if LAYOUT_KEYS.match(line)]
    different = [line for line in different if line not in moved]
    noted = json.loads((out / OWN).read_text()) if (out / OWN).is_file() else {}
    now = plugin_digests(recipe.model_dump(mode="json"))
    different += [
        f"the content of {name}: {noted[name]} -> {now[name]}"
        for name in now
        if noted.get(name, now[name]) != now[name]
    ]
    if different:
        shown = "\n".join(f"    {line}" for line in different[:SHOWN_DIFFERENCES])
        more = len(different) - SHOWN_DIFFERENCES
        raise UserError(
            f"run folder {out} was begun with another recipe. What differs, as it was -> as it is now:\n{shown}"
            + (f"\n    and {more} more" if more > 0 else "")
            + "\ngo on with the recipe as it was, give another folder with --out, or start from scratch with "
            "--restart, which moves this folder aside"
        )
    if not moved:
        return []
    return [
        f"going on with the student spread anew ({'; '.join(moved)}): weights, optimizer and the order of the data "
        "stay, and later numbers differ by rounding alone"
    ]


def move_aside(out: Path) -> Path | None:
    """Move a run's folder out of the way, keeping it; returns where it is now, or None where there was none.

    Raises:
        UserError: it is no run's folder, a live process is running in it, or it cannot be moved.
    """
    out = Path(os.path.realpath(out))  # `.` has no name to change
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not any((out / name).is_file() for name in (RECIPE, STUDY)):
        raise UserError(
            f"--restart would move {out} aside, which is no run's folder: it holds no {RECIPE}; give another with --out"
        )
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    aside = out.with_name(f"{out.name}.{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = out.with_name(f"{out.name}.{stamp}-{number}")
    try:
        with claim(out):  # refuses a folder that somebody runs in
            out.rename(aside)
    except OSError as error:
        raise UserError(f"run folder {out} cannot be moved aside: {error.strerror}; give another with --out") from error
    return aside


def check_folder(out: Path, *, needed_bytes: float) -> list[str]:
    """Whether a run can write its folder and finds room there; the problems, each a sentence. Leaves nothing behind."""
    if os.path.islink(out) and not os.path.exists(out):
        return [f"run folder {out} is a link that leads nowhere; give another with --out"]
    try:
        home = existing_parent(out)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        return [f"run folder {out} cannot be made: {error.strerror}; give another with --out"]
    if not home.is_dir():
        return [f"run folder {out} cannot be made: {home} is a file; give another with --out"]
    try:
        # Asked by doing: permissions alone do not tell of read-only mounts, and root passes them all.
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        return [f"run folder {out} cannot be written ({home}: {error.strerror}); give another with --out"]
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        return [
            f"run folder {out} needs about {size(needed_bytes)}, and the disk of {home} has {size(free)} free; "
            f"free some, or give another folder with --out"
        ]
    return []


def size(amount: float) -> str:
    """Bytes for people, in the largest unit of which there is at least one: ``1.2 GiB``, ``3.0 MiB``, ``512 bytes``."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if amount >= unit:
            return f"{amount / unit:.1f} {name}" if amount < 1e6 * 2**40 else f"{amount / unit:.1e} {name}"
    return f"{amount:.0f} bytes"


def kept(out: Path) -> str:
    """What a run or a study in ``out`` goes on from, if it ends now, for people: a sentence without its full stop."""
    places = ("", "*/", "stages*/*/", "*/stages/*/")
    whole: dict[str, str] = {}
    for folder in [path.parent for place in places for path in out.glob(f"{place}checkpoints")]:
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        steps = [match[1] for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
        name = out.name if folder == out else str(folder.relative_to(out)).removeprefix("stages/")
        if (folder / "finished.json").is_file():
            whole[name] = f"{name} (finished)"
        elif steps:
            whole[name] = f"{name} (after step {max(map(int, steps))})"
    return f"Saved are {', '.join(whole.values())}" if whole else "No checkpoint was written yet"


def existing_parent(path: Path) -> Path:
    """The path itself if it is there, else the nearest folder (or file) on the way up that is.

    Raises:
        OSError: a folder on the way may not be entered, or a name is longer than file systems take.
    """
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def note_environment(path: Path) -> None:
    """Write what the run is made with; a later attempt in another environment is added under ``resumed``."""
    now = environment()
    if not path.is_file():
        write_atomic(path, json.dumps(now, indent=2) + "\n")
        return
    first = json.loads(path.read_text())
    resumed = first.pop("resumed", [])
    if now != (resumed or [first])[-1]:  # not per token
        write_atomic(path, json.dumps({**first, "resumed": [*resumed, now]}, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Python, packages, commit and machine of this process."""
    packages = ("mopd", "torch", "deepspeed", "transformers", "ray", "datasets", "wandb", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "commit": commit(Path(__file__).resolve().parents[2]),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def commit(repository: Path) -> str | None:
    """The commit that is checked out in ``repository``; None without git, or where it is no repository's top."""
    command = ["git", "-C", str(repository), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[1] if Path(lines[0]) == repository.resolve() else None

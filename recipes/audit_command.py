"""What `mopd audit` shows: every folder of weights in a run or a study, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.errors import UserError
from mopd.distill.storage import damage, files_of, is_sealed
from mopd.recipes.resolve.damage import adapter_damage, adapters_of, read_marker, result_damage
from mopd.recipes.resolve.run_folder import RECIPE, STUDY, runs_of_study
from mopd.recipes.tables import Fitted

State = Literal["whole", "damaged", "not verified", "set aside", "half written"]
COLOURS: dict[State, str] = {"whole": "green", "damaged": "bold red"}
NOT_SEALED = "no digests: written by an earlier version of mopd, or by hand"


@dataclass(frozen=True, slots=True)
class Audited:
    """A part of a run's folder.

    Attributes:
        name: its path within the folder.
        state: ``damaged`` is the one that is never used; what was set aside or half written is not looked at.
        detail: what is wrong with it, or how much was read.
    """

    name: str
    state: State
    detail: str


def show(folder: Path, console: Console) -> bool:
    """Read all weights of a run or a study and print what is whole and what is not; whether nothing is damaged.

    Raises:
        UserError: the folder is no run's.
    """
    rows = audit(folder)
    table = Table(box=None, pad_edge=False)
    for column in ("what", "state", "detail"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, Text(row.state, style=COLOURS.get(row.state, "yellow")), row.detail)
    console.print(Fitted(table))
    bad = sum(row.state == "damaged" for row in rows)
    verdict = f"{folder}: {bad} of {len(rows)} damaged" if bad else f"{folder}: nothing is damaged"
    console.print(Text(verdict), soft_wrap=True)
    if bad:
        console.print(
            Text(
                "the command that made it goes on from the newest whole checkpoint, and makes again what can be made "
                "from one; it says so where there is none"
            ),
            soft_wrap=True,
        )
    return not bad


def audit(folder: Path) -> list[Audited]:
    """Every part of a run or a study that holds weights.

    Raises:
        UserError: the folder is no run's.
    """
    if not any((folder / name).is_file() for name in (RECIPE, STUDY)):
        raise UserError(f"{folder} is no run's folder: it holds neither {RECIPE} nor {STUDY}")
    return [row for part in _runs(folder) for row in _run(part, folder)]


def _runs(folder: Path) -> Iterator[Path]:
    """The folders below that are trained in: the run and its stages; of a study, all of its runs and shared stages."""
    if (folder / STUDY).is_file():
        for run in runs_of_study(folder):
            yield from (path for path in _runs_of(run) if not path.is_symlink())
        yield from sorted(folder.glob("stages-*/*"))
    else:
        yield from _runs_of(folder)


def _runs_of(folder: Path) -> list[Path]:
    return [folder, *sorted(path for path in (folder / "stages").glob("*") if path.is_dir())]


def _run(run: Path, top: Path) -> Iterator[Audited]:
    patterns = ("checkpoints/*", "candidates/*", "initial*", "student*", "adapter", "adapter.*")
    for path in (path for pattern in patterns for path in sorted(run.glob(pattern))):
        if path.is_dir():
            yield _folder(path, str(path.relative_to(top)))
    if read_marker(run) and not (run / "student").is_dir():
        yield Audited(str((run / "student").relative_to(top)), "damaged", "it is missing, and finished.json names it")
    if noted := adapters_of(run):
        wrong = adapter_damage(run)
        detail = "; ".join(wrong) or ", ".join(noted)
        yield Audited("adapters of teachers", "damaged" if wrong else "whole", detail)


def _folder(path: Path, name: str) -> Audited:
    if path.name.endswith(".damaged"):
        return Audited(name, "set aside", "a damaged checkpoint, which a run has gone on without")
    if ".tmp-" in path.name:
        return Audited(name, "half written", "an attempt was writing it, or is; a later one removes it")
    problems = damage(path) or (result_damage(path.parent) if path.name == "student" else ())
    if problems:
        return Audited(name, "damaged", "; ".join(problems))
    files = files_of(path).values()
    if not is_sealed(path):
        return Audited(name, "not verified", NOT_SEALED)
    return Audited(name, "whole", f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")

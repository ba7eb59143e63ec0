"""`mopd keep`: what a comparison says of kept runs is what it says of their folders, and a damaged file is refused."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from compare_kit import write_hand_run
from typer.testing import CliRunner

from mopd.distill.errors import UserError
from mopd.recipes.cli import app
from mopd.recipes.compare.comparison import compare
from mopd.recipes.report.kept import FILES, keep, unpack


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    other = {"name": "other", "description": "another row"}
    return [write_hand_run(tmp_path / "mopd-0"), write_hand_run(tmp_path / "other-0", other)]


def numbers(folders: list[Path]) -> dict[str, Any]:
    record = compare(folders).record()
    for run in record["runs"]:
        del run["folder"]
    return record


def test_a_kept_run_is_compared_as_its_folder_is(runs: list[Path], tmp_path: Path) -> None:
    before = numbers(runs)
    kept = keep(runs, tmp_path / "kept")
    assert [path.name for path in kept] == ["mopd-0.zip", "other-0.zip"]
    first = kept[0].read_bytes()
    keep(runs, tmp_path / "kept")
    assert kept[0].read_bytes() == first
    assert (unpack(kept[0]) / "evaluations.jsonl").read_bytes() == (runs[0] / "evaluations.jsonl").read_bytes()
    shutil.rmtree(runs[0])
    assert numbers([kept[0], runs[1]]) == before  # parts made at different times are joined
    held = set(zipfile.ZipFile(kept[0]).namelist())
    assert held <= set(FILES)


def test_a_study_is_kept_run_by_run(runs: list[Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    for run in runs:
        run.rename(study / run.name)
    (study / "study.json").write_text(json.dumps({"runs": [run.name for run in runs]}))
    result = CliRunner().invoke(app, ["keep", str(study), "--out", str(tmp_path / "kept")])
    assert result.exit_code == 0, result.output
    assert "mopd-0.zip" in result.output
    assert " kB" in result.output
    assert numbers(sorted((tmp_path / "kept").iterdir())) == numbers([study])


def test_what_is_not_finished_is_not_kept(runs: list[Path], tmp_path: Path) -> None:
    under_way = write_hand_run(tmp_path / "under-way", finished=False)
    with pytest.raises(UserError, match=r"under-way has no seesaw.json, ledger.json: a run is kept once"):
        keep([*runs, under_way], tmp_path / "kept")
    with pytest.raises(UserError, match="two runs are named mopd-0"):
        keep([runs[0], shutil.copytree(runs[0], tmp_path / "again" / "mopd-0")], tmp_path / "kept")
    with pytest.raises(UserError, match="is not there"):
        keep([tmp_path / "none"], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("name", "line"),
    [("evaluations.jsonl", "{}"), *((name, line) for name in ("evaluations.jsonl", "metrics.jsonl") for line in "3{")],
)
def test_a_damaged_run_is_refused_by_its_name(runs: list[Path], tmp_path: Path, name: str, line: str) -> None:
    with (runs[1] / name).open("a") as file:
        file.write(f"{line}\n")
    result = CliRunner().invoke(app, ["keep", *map(str, runs), "--out", str(tmp_path / "kept")])
    assert result.exit_code == 2, result.output
    assert str(runs[1]) in result.output.replace("\n", "")
    assert not (tmp_path / "kept").exists()


def test_a_damaged_file_is_refused_by_its_name(runs: list[Path], tmp_path: Path) -> None:
    (whole, _) = keep(runs, tmp_path / "kept")
    content = whole.read_bytes()
    rng = random.Random(0)
    damaged = tmp_path / "damaged.zip"
    problems: list[str] = []
    for _ in range(20):
        place = rng.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        damaged.write_bytes(rng.choice([bytes(changed), content[:place]]))
        try:
            folder = unpack(damaged)
        except UserError as error:
            problems.append(str(error))
        else:  # a bit of what zip files note beside their content
            assert all((folder / name).read_bytes() == (unpack(whole) / name).read_bytes() for name in FILES[:5])
    assert len(problems) >= 15
    assert all("damaged.zip is" in problem for problem in problems)
    damaged.write_bytes(b"no zip file")
    with pytest.raises(UserError, match="damaged, or no file of `mopd keep`"):
        unpack(damaged)
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("../escaped", "x")
    with pytest.raises(UserError, match=r"is no kept run: it holds no recipe.yaml"):
        unpack(damaged)

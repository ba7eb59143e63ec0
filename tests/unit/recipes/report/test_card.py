"""The model card of an exported student, read back by the Hub's own reader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from run_kit import write_run
from track_kit import tracked_run

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.tracking.sink import TrackedRun
from mopd.distill.tracking.sinks import SinkThread
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes.report.card import CARD, PICTURE, run_card, seesaw_picture
from mopd.recipes.report.data import load_run
from mopd.recipes.report.drawing import COLOURS
from mopd.recipes.report.records import recorded_recipe


def answers(folder: Path) -> list[Evaluation]:
    return [Evaluation(**json.loads(line)) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_the_card_names_what_the_student_is_made_of_and_its_scores(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", n_test=300, n_validation=50)
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    teachers = {name: {**settings, "model": f"org/{name}"} for name, settings in tree["teachers"].items()}
    domains = {name: {**settings, "task": {"path": f"set/{name}"}} for name, settings in tree["domains"].items()}
    domains["code"]["task"] = {"path": "./private.jsonl"}
    tree |= {"teachers": teachers, "domains": domains}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    card = ModelCard(run_card(folder, answers(folder))[CARD].decode())
    assert set(card.data.base_model) >= {f"org/{name}" for name in teachers}
    assert card.data.datasets == ["set/math", "set/reasoning"]
    assert card.data.to_dict()["library_name"] == "transformers"
    lines = card.text.splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    seesaw = load_run(folder).seesaw
    for domain in seesaw.domains:
        for model in ("base", "student"):
            assert f"{100 * seesaw.models[model][domain].score:.1f}%" in rows[domain]
        assert f"{100 * seesaw.metrics.recovery[domain]:.0f}%" in rows[domain]  # type: ignore[index, str-format]
    results = {result.dataset_name: result for result in card.data.eval_results or []}
    assert card.data.to_dict()["model-index"][0]["name"] == tree["name"]
    assert [results[domain].dataset_type for domain in ("math", "code")] == ["set/math", "code"]
    for domain in seesaw.domains:
        assert results[domain].metric_value == pytest.approx(seesaw.models["student"][domain].score, abs=1e-4)
        assert results[domain].dataset_split == "test"
    for name in teachers:
        assert f"- **{name}**: `org/{name}`" in lines


def test_stages_are_followed_to_what_they_were_made_from(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", n_test=300, n_validation=50)
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    of_hub = ModelCard(run_card(folder, answers(folder))[CARD].decode()).data.base_model
    assert of_hub is None or all("/" in name and not name.startswith(("stage:", ".", "/")) for name in of_hub)
    for stage in tree["stages"].values():
        if not str(stage["from"]).startswith("stage:"):
            stage["from"] = "org/base"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert ModelCard(run_card(folder, answers(folder))[CARD].decode()).data.base_model == ["org/base"]


def test_the_picture_shows_every_model_on_every_domain_and_the_card_says_its_numbers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", n_test=300, n_validation=50)
    files = run_card(folder, answers(folder))
    assert list(files) == [CARD, PICTURE]
    image = Image.open(BytesIO(files[PICTURE]))
    assert image.format == "PNG"
    assert image.width > 900
    found = {tuple(pixel) for count, pixel in image.convert("RGB").getcolors(1 << 20) or () if count > 200}
    assert {tuple(bytes.fromhex(each[1:])) for each in (*COLOURS[:3], "#ffffff")} <= found  # three domains
    seesaw = load_run(folder).seesaw
    (line,) = [line for line in files[CARD].decode().splitlines() if line.startswith("![")]
    assert line.endswith(f"]({PICTURE})")
    for model, scores in seesaw.models.items():
        if model == "base":
            assert "base" not in line
            continue
        name = "student" if model == "student" else f"teacher {model.removeprefix('teachers/')}"
        changes = {d: 100 * (score.score - seesaw.models["base"][d].score) for d, score in scores.items()}
        assert f"{name} " + ", ".join(f"{d} {c:+.1f}".replace("-", "−") for d, c in changes.items()) in line


def test_sinks_are_given_the_numbers_that_the_picture_is_drawn_from(tmp_path: Path) -> None:
    """W&B draws its table with the same specification."""
    folder = write_run(tmp_path / "run", n_test=300, n_validation=50)
    tables: dict[str, Sequence[Sequence[Any]]] = {}

    class Kept:
        def __init__(self, run: TrackedRun) -> None:
            self.run = run

        def log(self, row: Mapping[str, Any]) -> None:
            pass

        def table(
            self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool
        ) -> None:
            tables[name] = [columns, *rows]

        def summary(self, values: Mapping[str, float | None]) -> None:
            pass

        def close(self, *, failed: bool) -> None:
            pass

    (tmp_path / "tracked").mkdir()
    with Tracker(
        tmp_path / "tracked", sinks=[SinkThread(lambda: Kept, tracked_run(tmp_path), title="kept")]
    ) as tracker:
        tracker.summarize(json.loads((folder / "seesaw.json").read_text()))
    columns, *rows = tables["changes"]
    picture = seesaw_picture(recorded_recipe(folder), load_run(folder).seesaw)
    assert picture is not None
    drawn = picture.spec["data"]["values"]
    assert len(rows) == len(drawn) == 4 * 3
    for row, value in zip(rows, drawn, strict=True):
        assert dict(zip(columns, row, strict=True)) == pytest.approx(value, abs=1e-3)

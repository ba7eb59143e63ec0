"""docs/notebook.ipynb: its cells run in order on a finished run, and show what seesaw.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas.io.formats.style  # noqa: F401  read at collection: later, a class of some test has jinja2 take a path for a list
import pytest
from run_kit import write_run

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def test_every_cell_runs_on_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "runs" / "quickstart", n_test=100, n_validation=50)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) <= 15
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            *statements, shown = "".join(cell["source"]).rstrip().split("\n")
            exec("\n".join(statements), names)
            html = getattr(eval(shown, names), "to_html", None)
            assert html is None or "<table" in html()
    seesaw = json.loads((folder / "seesaw.json").read_text())
    assert names["scores"].loc["student", "math"] == seesaw["models"]["student"]["math"]["score"]
    assert names["recovery"]["recovery"].to_dict() == seesaw["metrics"]["recovery"]
    drawn = names["recovery"].style.bar(subset=["recovery"], vmin=0, vmax=1).to_html()
    assert "linear-gradient" in drawn
    assert list(names["curve_recovery"].index) == [point["step"] for point in seesaw["curve"]]

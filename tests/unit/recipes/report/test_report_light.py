"""Reading a finished run waits for no machine-learning library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from run_kit import write_run

HEAVY = ("torch", "ray", "transformers", "deepspeed")


def test_a_finished_run_is_reported_without_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", n_test=20, n_validation=20)
    script = (
        "import json, pathlib, sys; from mopd.recipes.report.page import summary_table, write_report; "
        f"run = pathlib.Path({str(run)!r}); write_report(run); summary_table(run); print(json.dumps(list(sys.modules)))"
    )
    modules = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert [name for name in HEAVY if name in modules] == []
    assert (run / "report.html").is_file()


def test_runs_are_compared_without_torch(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, n_test=20, n_validation=20)) for name in ("first", "second")]
    script = f"""
import json, sys
from typer.testing import CliRunner
from mopd.recipes.cli import app
result = CliRunner().invoke(app, ["compare", *{runs!r}, "--out", {str(tmp_path / "comparison")!r}])
assert result.exit_code == 0, result.output
print(json.dumps(list(sys.modules)))
"""
    modules = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert [name for name in HEAVY if name in modules] == []
    assert (tmp_path / "comparison" / "comparison.html").is_file()


def test_what_draws_is_imported_where_something_is_drawn() -> None:
    script = """
import json, sys
import mopd.recipes.cli, mopd.recipes.compare.page, mopd.recipes.report.page
from mopd.recipes.report.chart_parts import Line
from mopd.recipes.report.charts import line_chart
picture = line_chart([Line("a", 0, [(0, 1), (1, 2)])], title="t", y_range=(0, 2), y_format=str)
before = "vl_convert" in sys.modules
picture.svg
print(json.dumps([before, "vl_convert" in sys.modules, "altair" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(done.stdout) == [False, True, False]

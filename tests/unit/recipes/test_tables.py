"""Tables of results at 80 columns: nothing is cut, and no number is broken over two lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cli_kit import mopd
from compare_kit import right, write_hand_run
from rich.console import Console
from rich.table import Table

from mopd.distill.metrics.evaluate import Interval
from mopd.recipes.evaluation.command import MeasuredTask, measured_table
from mopd.recipes.tables import Fitted


def shown(table: object, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().splitlines()


def made(columns: int) -> Table:
    table = Table(title="what it is", caption="a remark")
    for heading in ("run", *(f"domain\n{n}" for n in range(columns))):
        table.add_column(heading, no_wrap=True)
    for row in ("first", "second"):
        table.add_row(row, *(f"{n}.5%\n(0–{n}%)" for n in range(columns)))
    return table


def test_a_table_that_fits_is_a_table() -> None:
    assert shown(Fitted(made(3))) == shown(made(3))


def test_a_wider_one_is_a_block_a_row_with_every_value_beside_its_heading() -> None:
    lines = shown(Fitted(made(24)))
    assert lines[0] == "what it is"
    assert [line for line in lines if not line.startswith(" ")] == ["what it is", "first", "second", "a remark"]
    assert max(map(len, lines)) <= 80
    second = " ".join(lines[lines.index("second") :]).split()
    for n in range(24):
        assert " ".join(second).count(f" domain {n} {n}.5% (0–{n}%)") == 1
    assert " ".join(lines[2].split()) == "domain 0 0.5% (0–0%) domain 1 1.5% (0–1%) domain 2 2.5% (0–2%)"


def test_a_value_longer_than_the_console_is_wrapped_and_not_cut() -> None:
    table = Table("run", "where")
    table.add_row("first", "x" * 200)
    table.columns[1].no_wrap = True
    assert "".join(line.strip() for line in shown(Fitted(table))).count("x") == 200


@pytest.mark.parametrize("domains", [3, 24])
def test_compare_and_report_at_80_columns(domains: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    names = [f"instruction_{n}" for n in range(domains)]
    task = {"task": "arithmetic", "teacher": "math", "teachers": {}, "evaluate_only": False, "prompts": 4, "share": 1.0}
    given = {"base": 50, "math": 90, "student": 80}
    answers = {model: {name: right(count) for name in names} for model, count in given.items()}
    for run in ("a-run-with-a-name", "another"):
        write_hand_run(
            tmp_path / run,
            {"domains": dict.fromkeys(names, task)},
            base=answers["base"],
            teachers={"math": answers["math"]},
            student=answers["student"],
            curve={0: answers["base"], 20: answers["student"]},
        )
    for result in (mopd("compare", "a-run-with-a-name", "another"), mopd("report", "another")):
        assert result.exit_code == 0, result.output
        assert "…" not in result.stdout
        lines = result.stdout.splitlines()
        assert all(len(line) <= 80 for line in lines if line.startswith((" ", "│", "┃"))), result.stdout
        words = " ".join(result.stdout.replace("│", " ").split())
        assert words.count("75%") >= domains
        assert all(name in words for name in names)
    assert "seesaw" in result.stdout


def test_check_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = mopd("check", "smoke", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if line.startswith(("│", "┃", "┏")))
    for words in ("parameters", "how many", "memory each", "tokens, about", "at most"):
        assert words in result.stdout


def test_eval_at_80_columns() -> None:
    scored = Interval(0.625, 0.5774, 0.6703, 400)
    measured = {
        name: MeasuredTask(scored, scored, truncated=0.125, mean_tokens=3.0, unjudged=None)
        for name in ("arithmetic", "a_task_of_the_users_own_with_a_long_name")
    }
    for width in (80, 120):
        text = "\n".join(lines := shown(measured_table("/a/folder", measured, samples=16), width))
        assert max(map(len, lines)) <= width
        assert text.count("62.5") == 4
        assert text.count("57.7 to 67.0") == 4
        assert "a_task_of_the_users_own_with_a_long_name" in text

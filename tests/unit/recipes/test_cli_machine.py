"""The command line where the machine, or what lies on it, refuses: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from check_kit import save_model, tokenizer_of
from cli_kit import SMOKE, broken, mopd, refused
from typer.testing import CliRunner

from mopd.distill.errors import Interrupted
from mopd.distill.recipe.files import dump_recipe, load_recipe
from mopd.distill.types import RunError
from mopd.recipes import SHIPPED


def failing(error: BaseException) -> tuple[int, str]:
    """Exit code and output of a command that raises."""
    result = CliRunner().invoke(broken(error), ["fail"])
    return result.exit_code, result.output


def test_a_full_disk_is_the_worlds_fault() -> None:
    code, output = failing(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"))
    assert code == 1
    for told in ("the machine refused", "No space left on device", "metrics.jsonl", "the last checkpoint resumes it"):
        assert told in output
    assert "Traceback" not in output


@pytest.mark.parametrize("error", [lambda: RunError("x"), lambda: Interrupted("x"), lambda: KeyboardInterrupt()])
def test_nobody_is_advised_to_start_anew(error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mopd", "run", "smoke", "--restart", "seed=3"])
    assert failing(error())[1].rstrip().endswith("mopd run smoke seed=3")


def test_nothing_was_run_is_said_only_where_it_is_true(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("smoke", shipped=SHIPPED)))
    refused("run", "smoke", "run.steps=9", "--out", str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    result = mopd("run", "smoke", "run.steps=9", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "a problem to fix\n" in result.output
    assert "nothing was run" not in result.output


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for command in ("check", "run"):
        assert "File name too long" in refused(command, "smoke", "--out", str(tmp_path / ("x" * 300)))
    assert "File name too long" in refused("eval", f"./{'x' * 300}", "--tasks", "arithmetic")


def test_restart_leaves_alone_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text(SMOKE)
    assert "no run's folder" in refused("run", "smoke", "--out", str(tmp_path), "--restart")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.txt"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", "the weights in"),
        ("tokenizer.json", "the tokenizer in"),
        ("config.json", "the configuration in"),
    ],
)
def test_eval_refuses_a_broken_checkpoint(tmp_path: Path, file: str, told: str) -> None:
    folder = Path(save_model(tmp_path / "model", tokenizer_of("arithmetic")))
    (folder / file).write_text("")
    assert told in refused("eval", str(folder), "--tasks", "arithmetic", "--prompts", "4")

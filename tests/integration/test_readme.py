"""README's way from a user's own questions to a report, command by command, as it is written there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from check_kit import save_model, tokenizer_of
from house_kit import REPOSITORY

MADE_BY_THE_TEST = ("make install", ". .venv/bin/activate", "pip install", "python -m mopd.recipes.smollm2_model")
"""They install and download; the test's own environment and a tiny model stand in their place."""


def commands() -> list[str]:
    section = (REPOSITORY / "README.md").read_text().partition("## From your own questions to a report\n")[2]
    block = re.findall(r"(?:^    .+\n)+", section.partition("\n## ")[0], re.MULTILINE)[0]
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def test_the_way_to_a_report_has_at_most_fifteen_commands() -> None:
    assert len(commands()) + 1 <= 15  # and the clone
    assert [line for line in commands()[:4] if not line.startswith(MADE_BY_THE_TEST)] == []


def test_the_commands_lead_from_rows_to_a_report_in_an_empty_home(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    tokenizer = tokenizer_of("arithmetic")
    save_model(work / "models" / "SmolLM2-135M-Instruct", tokenizer)
    rows = [{"question": f"math {a}+{b}=", "answer": str(a + b)} for a in range(20) for b in range(15)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "100"}
    printed: dict[str, str] = {}
    for line in commands()[4:]:
        program, *words = shlex.split(line)
        assert program == "mopd"
        command = [str(Path(sys.executable).with_name(program)), *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed[words[0]] = done.stdout
    run = work / "runs" / "mine"
    assert "finished" in printed["ls"]
    assert "rows" in printed["report"]
    assert "student after step" in printed["answers"]
    assert "nothing is damaged" in printed["audit"]
    assert "What it gets wrong" in (run / "report.html").read_text()
    assert json.loads((run / "seesaw.json").read_text())["domains"] == ["rows"]

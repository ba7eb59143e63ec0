"""The example of docs/teachers.md: a student that sees its gold answer teaches itself, beside an own scorer."""

import re
from pathlib import Path

import pytest
from runs import rows, run

PAGE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
SECTION = PAGE.split("## Teachers that see more\n", 1)[1].split("\n## ", 1)[0]
SMALL = ["run={steps: 2, evaluate_every: 2, save_every: 2}", "evaluate={validation_prompts: 4, test_prompts: 8}"]


def test_the_page_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scorer,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    recipe = re.findall(r"```yaml\n(extends.*?)```", SECTION, re.DOTALL)[0]
    (tmp_path / "gold.py").write_text(scorer)
    (tmp_path / "tutored.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    printed = run("run", "./tutored.yaml", *SMALL, "--out", tmp_path / "run")
    assert "it reads a prompt of its own" in re.sub(r"[\s│]+", " ", printed)
    trained = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(trained) == 2
    for row in trained:
        assert 0 <= row["hint_repeated/tutored"] <= 1
        assert 0 <= row["hint_gain/gold"] <= 1
        assert 0 <= row["clipped/math"] <= 1

"""`mopd eval --harness`: the numbers of lm-evaluation-harness, and what is said where it is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from check_kit import save_model, tokenizer_of
from cli_kit import mopd, refused

from mopd.recipes.evaluation.harness import MISSING, HarnessScore, harness_scores

INSTALLED = importlib.util.find_spec("lm_eval") is not None
GSM8K = {  # as lm-evaluation-harness 0.4.13 writes it
    "gsm8k": {
        "alias": "gsm8k",
        "sample_len": 5,
        "exact_match,strict-match": 0.4,
        "exact_match_stderr,strict-match": 0.24494897427831783,
        "exact_match,flexible-extract": 0.6,
        "exact_match_stderr,flexible-extract": 0.2449489742783178,
    },
    "humaneval": {"alias": "humaneval", "pass@1,create_test": 0.5, "pass@1_stderr,create_test": "N/A"},
    "own": {"alias": "own", "acc,none": 1.0, "acc_stderr,none": 0.0},
}
TASK = """
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_the_numbers_are_those_of_the_harness() -> None:
    assert harness_scores(GSM8K) == [
        HarnessScore("gsm8k", "exact_match,strict-match", 0.4, 0.24494897427831783),
        HarnessScore("gsm8k", "exact_match,flexible-extract", 0.6, 0.2449489742783178),
        HarnessScore("humaneval", "pass@1,create_test", 0.5, None),
        HarnessScore("own", "acc", 1.0, 0.0),
    ]


@pytest.mark.skipif(INSTALLED, reason="lm-evaluation-harness is installed")
def test_where_it_is_not_installed_it_says_how(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", tokenizer_of("arithmetic"))
    assert MISSING in refused("eval", model, "--harness", "gsm8k").replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--tasks", "arithmetic", "--harness", "gsm8k"), "give --tasks, or --recipe, or --harness"),
        (("--harness", "gsm8k", "--samples", "3"), "--samples is set by the tasks of --harness themselves"),
        (("--harness", "gsm8k", "--stop", "x"), "--stop is set by the tasks of --harness themselves"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], why: str) -> None:
    assert why in refused("eval", "./nowhere", *options)


@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed (mopd[harness])")
def test_a_task_file_over_rows_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"math 1{i}+2{i}=", "answer": str(i)} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "sums.yaml").write_text(text)
    model = save_model(tmp_path / "model", tokenizer_of("arithmetic"))
    result = mopd("eval", model, "--harness", "./sums.yaml", "--prompts", "3", "--json", "found.json")
    assert result.exit_code == 0, result.output
    (score,) = [s for s in json.loads(Path("found.json").read_text())["scores"] if s["metric"] == "acc"]
    assert (score["task"], 0 <= score["value"] <= 1) == ("own_sums", True)
    assert "no task 'nowhere_known'" in refused("eval", model, "--harness", "nowhere_known")

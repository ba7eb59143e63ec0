"""The fourth domain of docs/fourth, a user's own task and a loss of their own, from the command line to the report."""

import json
import re
from pathlib import Path

import pytest
from runs import ONE_SPECIALIST, assert_whole, rows, run

from mopd.distill.verdicts import PER_MINUTE

ROOT = Path(__file__).parents[2]
DOMAINS = ["math", "code", "reasoning", "walks"]
LOSS = """
from mopd.distill.loss.registry import LossSpec, full_reverse_kl

LOSS = LossSpec("full", lambda logits_BTV, microbatch, settings: full_reverse_kl(logits_BTV, microbatch, settings))
"""
SMALL = [
    "run={steps: 2, evaluate_every: 2, save_every: 2}",
    "evaluate={validation_prompts: 4, test_prompts: 8}",
    "stages.base.steps=2",
    "stages.base.optimizer.warmup_steps=0",
    *(f"stages.{name}.{leaf}" for name in ("math", "walks") for leaf in ("steps=1", "optimizer.warmup_steps=0")),
    *ONE_SPECIALIST,
]


@pytest.fixture(scope="module")
def fourth(tmp_path_factory):
    """A run of the example's lines over `smoke` instead of `quickstart`, begun elsewhere than where its files lie."""
    folder = tmp_path_factory.mktemp("fourth")
    text = (ROOT / "docs" / "fourth" / "fourth.yaml").read_text()
    text = text.replace("extends: quickstart", "extends: smoke").replace("./docs", str(ROOT / "docs"))
    (folder / "loss.py").write_text(LOSS)
    (folder / "fourth.yaml").write_text(f"{text}loss: {{estimator: {folder}/loss.py:LOSS}}\n")
    return folder, run("run", folder / "fourth.yaml", *SMALL, "--out", folder / "run")


def test_it_ends_in_a_report_of_four_domains(fourth):
    folder, printed = fourth
    assert_whole(folder / "run", steps=2)
    seesaw = json.loads((folder / "run" / "seesaw.json").read_text())
    assert seesaw["domains"] == DOMAINS
    assert set(seesaw["models"]) == {"base", "student", *(f"teachers/{name}" for name in DOMAINS)}
    assert all(set(scores) == set(DOMAINS) for scores in seesaw["models"].values())
    assert len({task["fingerprint"] for task in seesaw["tasks"].values()}) == 4
    assert "walks" in printed
    assert "walks" in (folder / "run" / "report.html").read_text()


def test_every_domain_is_graded_by_the_loss_of_ones_own(fourth):
    trained = [row for row in rows(fourth[0] / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert all(row[f"kl/{name}"] > 0 for row in trained for name in DOMAINS)
    assert set(json.loads((fourth[0] / "run" / "own.json").read_text())) == {
        f"{ROOT}/docs/fourth/walk.py:Walk",
        f"{fourth[0]}/loss.py:LOSS",
    }


# ---- docs/metrics.md


def documented() -> dict[str, set[str]]:
    """Names of each kind of row, as the page has them."""
    names: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ").split(",")[0]
        elif match := re.match(r"\| `(\S+)` \| \S.* \| \S.* \|$", line):
            names.setdefault(kind, set()).add(match[1])
    return names


def generic(name: str) -> str:
    """``kl/math`` as ``kl/DOMAIN``."""
    head, _, last = name.rpartition("/")
    if head in (
        "teacher_retries",
        "teacher_swaps",
        "seconds/teacher",
        "tokens/teacher",
        "flops/teacher",
        "bytes/teacher",
    ):
        return f"{head}/TEACHER"
    return f"{head}/DOMAIN" if last in DOMAINS else name


def test_a_run_writes_no_metric_that_the_page_does_not_name(fourth):
    written: dict[str, set[str]] = {}
    for path in (fourth[0] / "run").rglob("metrics.jsonl"):
        for row in rows(path):
            written.setdefault(row.pop("kind"), set()).update(map(generic, row.keys() - {"step"}))
    page = documented()
    assert (set(page), set(written)) == ({"train", "eval", "fault", "unused"}, {"train", "eval"})
    assert {kind: names - page[kind] for kind, names in written.items()} == {"train": set(), "eval": set()}
    # What this run has no occasion for: rewards, estimators on the sampled token, teachers that gain or are lost.
    rare = {"gate_dropped/DOMAIN", "clipped/DOMAIN", "recovery/DOMAIN", "mean_recovery", "pooled_recovery"}
    rare |= {"worst_recovery", "worst_recovery_estimate", "worst_recovery/low", "worst_recovery/high"}
    rare |= {"reward/DOMAIN", "kept/DOMAIN", "off_policy/DOMAIN", "merge_strength", "staleness", "stale/DOMAIN"}
    rare |= {"sampled_score/DOMAIN", "no_answer/DOMAIN", "refused/DOMAIN"}
    rare |= {"teacher_retries/TEACHER", "teacher_swaps/TEACHER"}
    rare |= {
        f"{name}/DOMAIN" for name in ("turns", "tool_calls", "tool_errors", "episode_reward", "prefix")
    }  # environments
    rare |= {"solved_after_failure/DOMAIN", "episode_failures/DOMAIN/REASON", *PER_MINUTE}
    absent = (page["train"] - written["train"]) | (page["eval"] - written["eval"])
    assert {name for name in absent if not name.startswith(("draft", "hint_", "aligned/", "unscored/"))} <= rare

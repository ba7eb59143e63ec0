"""Datasets of the Hub by branch and commit, over the wire to a Hub on this machine, with the libraries' own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_kit import REPO, Hub, serving

CODE = """
import json, sys
from mopd.distill.recipe import Source
from mopd.distill.types import UserError
from mopd.rollouts.tasks.dataset import DatasetTask
for asked in json.loads(sys.argv[1]):
    try:
        task = DatasetTask(Source(**asked), None, domain="d")
        (report,) = task.reports
        print(json.dumps([report.version, report.rows, task.example(seed=0, split="train", index=0).answer[0]]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def rows(letter: str, count: int) -> str:
    return "".join(json.dumps({"prompt": f"what is {i}?", "answer": f"{letter}{i}"}) + "\n" for i in range(count))


def test_a_dataset_is_noted_by_the_commit_that_was_resolved(tmp_path: Path) -> None:
    hub = Hub()
    first = hub.push({"train.jsonl": rows("a", 40)})
    second = hub.push({"train.jsonl": rows("b", 50), "README.md": "# A set\n"})
    asked = [
        {"path": REPO},
        {"path": REPO, "revision": first},
        {"path": REPO, "revision": "main", "streaming": True, "limit": 35},
        {"path": REPO, "revision": "nothing"},
    ]
    with serving(hub) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(asked)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    *read, unknown = map(json.loads, done.stdout.splitlines())
    assert read == [[second, 50, "b"], [first, 40, "a"], [second, 35, "b"]]
    assert "Revision Not Found" in unknown
    assert REPO in unknown

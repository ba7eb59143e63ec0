"""A capability is a file and a row: a user's own task, estimator, sink, teacher kind, engine and method in whole runs.

Each comes from one file, through the public names alone, and none is a subclass of a shipped one.
"""

import json
import subprocess
from pathlib import Path

import pytest
from own_page_kit import example
from runs import rows, run

ROOT = Path(__file__).parents[2]
TASK = '''
import hashlib
import random

from mopd import Example


class Doubles:
    """``twice 7=`` -> ``14``."""

    def example(self, *, seed, split, index, easy=False):
        rng = random.Random(f"{seed}/{split}/{index}/{easy}")
        while True:
            number = rng.randrange(100_000)
            part = int(hashlib.sha256(str(number).encode()).hexdigest(), 16) % 10
            if split == ("test" if part == 0 else "validation" if part == 1 else "train"):
                return Example(str(number), f"twice {number}=", str(2 * number))

    def verify(self, prompt, text):
        return float(text == prompt.answer)

    def verify_many(self, prompts, texts):
        return [self.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def wrong_answer(self, example):
        return example.answer + "1"
'''
KIND = '''
"""A teacher that finds every token equally likely; only the configuration of its model is here."""
from dataclasses import dataclass

import numpy as np
from transformers import AutoConfig

from mopd import Sampled, TeacherKind


@dataclass(frozen=True)
class Uniform:
    vocabulary: int

    def open(self, conditions, adapters):
        return self

    def score(self, token_ids, payload, adapter=None, given=None):
        return [Sampled(np.full(len(ids_T), -np.log(self.vocabulary), np.float32)) for ids_T in token_ids]


KIND = TeacherKind(
    "uniform",
    lambda setup: Uniform(AutoConfig.from_pretrained(setup.folder).vocab_size),
    payloads=("sampled",),
    has_weights=False,
)
'''
SMALL = [
    "run={steps: 2, evaluate_every: 2, save_every: 2}",
    "evaluate={validation_prompts: 4, test_prompts: 8}",
    "student.optimizer.warmup_steps=0",
    "stages.code=null",
    "stages.reasoning=null",
    "domains.code=null",
    "domains.reasoning=null",
    "teachers.code=null",
    "teachers.reasoning=null",
]


def in_git() -> str:
    """What git says of the project's tree."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run over a task, an estimator that drives shares, and a sink of a user's own."""
    folder, before = tmp_path_factory.mktemp("seams"), in_git()
    files = {"task": TASK, "loss": example("A payload of its own"), "sink": example("A sink")}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    own = [
        f"domains.twice={{task: {folder}/task.py:Doubles, teacher: math, prompts: 4}}",
        f"loss={{estimator: {folder}/loss.py:LOSS, settings: {{strength: 2.0}}}}",
        "share_rule=variance_scaled",
        f"track.sinks=[{folder}/sink.py:Lines]",
        "stages.base.steps=2",
        "stages.base.optimizer.warmup_steps=0",
        "stages.math.steps=1",
        "stages.math.optimizer.warmup_steps=0",
    ]
    run("run", "smoke", *SMALL, *own, "--out", folder / "run")
    assert in_git() == before
    return folder


def test_an_own_task_is_taught_by_an_own_estimator_that_drives_the_shares(learnt):
    trained = [row for row in rows(learnt / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [1, 2]
    for row in trained:
        assert row["share/math"] + row["share/twice"] == pytest.approx(1)
        assert row["share/math"] != pytest.approx(0.5, abs=1e-6)
        assert row["bytes/teacher/math"] > 0
    seesaw = json.loads((learnt / "run" / "seesaw.json").read_text())
    assert set(seesaw["models"]["student"]) == {"math", "twice"}


def test_an_own_sink_gets_every_row(learnt):
    for folder in (learnt / "run", learnt / "run" / "stages" / "math"):
        lines = [json.loads(line) for line in (folder / "shown.jsonl").read_text().splitlines()]
        shown = [line for line in lines if line[0] in ("train", "eval")]
        assert shown == [[row["kind"], row["step"], len(row)] for row in rows(folder / "metrics.jsonl")]
    assert "summary" in [kind for kind, *_ in rows(learnt / "run" / "shown.jsonl")]


def test_an_own_kind_engine_and_method_run_together(learnt):
    before = in_git()
    begins = "def sample(self, prompts, *, step, greedy=False):\n"
    log = (
        f'        print("exam" if greedy else "rollouts", step, len(prompts), file=open("{learnt}/engine.log", "a"))\n'
    )
    engine = example("An engine").replace(begins, begins + log)
    for name, text in {"kind": KIND, "engine": engine, "method": example("A method")}.items():
        (learnt / f"{name}.py").write_text(text)
    base = learnt / "run" / "stages" / "base" / "student"
    config = learnt / "elsewhere"
    config.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (config / path.name).write_bytes(path.read_bytes())
    own = [
        f"student.model={base}",
        f"method={learnt}/method.py:HALF",
        f"rollout.engine={learnt}/engine.py:ENGINE",
        f"teachers.math={{model: {config}, kind: '{learnt}/kind.py:KIND'}}",
        "loss={estimator: policy_gradient, gate: [1.0e-6, 1.0e6]}",
        "stages.base=null",
        "stages.math=null",
    ]
    run("run", "smoke", *SMALL, *own, "--out", learnt / "other")
    assert in_git() == before
    trained = [row for row in rows(learnt / "other" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in trained)
    written = [line.split() for line in (learnt / "engine.log").read_text().splitlines()]
    exams = [int(n) for what, _, n in written if what == "exam"]
    assert sum(exams) >= 4 + 8 + 2 * 4 + 8  # base on both splits, the student twice on validation and once on test
    rollouts = [(int(step), int(n)) for what, step, n in written if what == "rollouts"]
    assert rollouts[0] == (0, 4), "the preflight's"
    assert (1, 4) in rollouts
    preflight = json.loads((learnt / "other" / "preflight.json").read_text())
    assert preflight["passed"]
    assert [finding["teacher"] for finding in preflight["findings"]] == ["math"]

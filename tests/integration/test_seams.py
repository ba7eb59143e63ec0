"""A capability is a file and a row: a user's own task, estimator, sink, teacher kind, engine and method in whole runs.

Each comes from one file, through the public names alone, and none is a subclass of a shipped one.
"""

import json
import subprocess
from pathlib import Path

import pytest
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
LOSS = '''
"""Cross-entropy on the token that a teacher likes best; its teachers ship that token and how sure they are of it."""
from dataclasses import dataclass

import numpy as np
import torch

from mopd import LossSpec, Payload, PayloadSpec, each_teacher, log_softmax, pick, spread


@dataclass(frozen=True, slots=True)
class Favourite(Payload):
    ids_T: np.ndarray
    logprobs_T: np.ndarray
    drawn_T: np.ndarray

    def sampled_logprobs(self, token_ids_T):
        return self.drawn_T


def favourite(logprobs_TV, token_ids_T, asked):
    logprobs_T, ids_T = logprobs_TV.max(-1)
    drawn_T = logprobs_TV.gather(-1, token_ids_T[:, None])[:, 0]
    return Favourite(ids_T.cpu().numpy().astype("int32"), logprobs_T.cpu().numpy(), drawn_T.cpu().numpy())


def loss(logits_BTV, microbatch, settings):
    def one_teacher(rows, mask_BT):
        logp_N = pick(log_softmax(logits_BTV[mask_BT]), rows.arrays["ids_T"][mask_BT])
        sure_N = rows.arrays["logprobs_T"][mask_BT].exp()
        return spread(-settings["strength"] * sure_N * logp_N, {"entropy": sure_N}, mask_BT)

    return each_teacher(microbatch, one_teacher)


LOSS = LossSpec(
    PayloadSpec(Favourite, lambda sizes: 12, favourite),
    loss,
    needs_each_teacher=True,
    token_advantage=lambda tokens, settings: settings["strength"] * torch.tanh(tokens.teacher_N - tokens.policy_N),
)
'''
SINK = """
import json


class Lines:
    def __init__(self, run):
        self.name, self.file = run.name, open(LOG, "a")

    def log(self, row):
        print(json.dumps([self.name, row["kind"], row["step"], len(row)]), file=self.file, flush=True)

    def table(self, name, step, columns, rows, *, bars):
        print(json.dumps([self.name, "table", step, len(rows)]), file=self.file, flush=True)

    def summary(self, values):
        print(json.dumps([self.name, "summary", 0, len(values)]), file=self.file, flush=True)

    def close(self, *, failed):
        self.file.close()
"""
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
ENGINE = '''
"""An engine that writes EOS after every prompt, and notes how much it was asked for."""
import numpy as np

from mopd import Rollout, RolloutEngine


class Silence:
    def __init__(self, settings):
        self.settings, self.version = settings, 0

    def load_weights(self, weights, *, version):
        self.version = version

    def sample(self, prompts, *, step, greedy=False):
        with open(LOG, "a") as log:
            print("exam" if greedy else "rollouts", step, len(prompts), file=log)
        for group, prompt in enumerate(prompts):
            ids = np.array([*prompt.token_ids, self.settings.decoding.eos_token_id], dtype=np.int32)
            mask = np.arange(len(ids)) == len(ids) - 1
            logprobs = np.where(mask, -4.5, 0).astype(np.float32)
            yield [Rollout(prompt, ids, mask, logprobs, "eos", self.version, group, group)]


ENGINE = RolloutEngine(
    of_student=lambda student, closing: Silence,
    of_checkpoints=lambda processes, settings, closing: lambda model: Silence(settings),
    keyed=True,
)
'''
METHOD = """
from mopd import Method

HALF = Method(
    actor=lambda parts: parts.student(),
    grader=lambda parts: parts.teachers(),
    losses=frozenset({"policy_gradient"}),
    samples=True,
    teachers="grade",
)
"""
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
    for name, text in {"task": TASK, "loss": LOSS, "sink": SINK.replace("LOG", repr(f"{folder}/sink.log"))}.items():
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
    lines = [json.loads(line) for line in (learnt / "sink.log").read_text().splitlines()]
    for name, folder in {"smoke": learnt / "run", "smoke/math": learnt / "run" / "stages" / "math"}.items():
        shown = [[kind, step, n] for run_name, kind, step, n in lines if run_name == name and kind in ("train", "eval")]
        assert shown == [[row["kind"], row["step"], len(row)] for row in rows(folder / "metrics.jsonl")]
    assert ["smoke", "summary"] in [line[:2] for line in lines]


def test_an_own_kind_engine_and_method_run_together(learnt):
    before = in_git()
    for name, text in {
        "kind": KIND,
        "engine": ENGINE.replace("LOG", repr(f"{learnt}/engine.log")),
        "method": METHOD,
    }.items():
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

"""The idle shares of a step: a teacher and a rank that are made to sleep show in the figures of those who wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from student_kit import DOMAINS, VOCABULARY, ProcessRanks, engine_of, make_model, make_spec, student

from mopd.distill.loop import idle_shares, train
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Metrics, Prompt, ScoredRollout
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import StudentSampler
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.custom import CustomSource
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

SLEPT_SECONDS = 2.0
SLEEPY = """
import time
from pathlib import Path
import numpy as np
from mopd import Full

class Sleepy:
    payloads = ("full",)
    vocabulary = {vocabulary}

    def __init__(self, model, *, device, dtype, conditions):
        self.flag = Path(model) / "sleep"

    def score(self, token_ids, payload, adapter=None, given=None):
        if self.flag.exists():
            time.sleep({seconds})
        return [Full(np.full((len(ids), self.vocabulary), -np.log(np.float32(self.vocabulary)))) for ids in token_ids]
"""


def wake_in_training(module: Any, seconds: float) -> None:
    """Sleep in the next forward that trains."""

    def hook(*_: Any) -> None:
        if module.training:
            handle.remove()
            time.sleep(seconds)

    handle = module.register_forward_pre_hook(hook)


class Steps:
    """Callbacks that keep the metrics of each step, and begin the next with ``prepare``."""

    def __init__(self, prepare: Any) -> None:
        self.rows: list[Metrics] = []
        self.prepare = prepare

    def resumed(self, step: int) -> None: ...

    def evaluates(self, step: int) -> bool:
        self.prepare(step)
        return False

    def evaluate(self, step: int, weights: Any) -> None: ...

    def record(self, step: int, batch: Sequence[ScoredRollout], metrics: Metrics) -> None:
        self.rows.append(metrics)

    def failed(self, step: int, metrics: Metrics, error: Exception) -> None: ...

    def saves(self, step: int) -> bool:
        return False

    def ended(self) -> bool:
        return False

    def stops(self) -> bool:
        return False


def test_who_waits_for_a_sleeper_is_idle_for_as_long(
    cluster: None, models: Path, tmp_path: Path, two: ProcessRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sleepy.py").write_text(SLEEPY.format(vocabulary=VOCABULARY, seconds=SLEPT_SECONDS))
    source = CustomSource.of("./sleepy.py:Sleepy", str(tmp_path), "cpu", "float32")
    pool = TeacherPool(
        {"sleepy": TeacherSpec(source, Conditions(1.0, 4096), 0.0, 1)},
        routes={domain: {"sleepy": 1.0} for domain in DOMAINS},
        payload="full", faults=FaultRecipe(), say=print,
    )  # fmt: skip
    pool.wait_until_ready()
    spec = make_spec(make_model(models), tmp_path / "run", engine=engine_of(2, microbatch_tokens=4096))
    learner = student(two.start(spec), spec)
    decoding = Decoding(6, 1.0, greedy=False, seed=0, step=0, end_token_ids=(-1,), pad_token_id=0)
    kinds = ["warm up", "plain", "teacher", "rank"] * 3

    def prepare(step: int) -> None:
        """A step of its kind comes next."""
        if step == len(kinds):
            return
        flag = tmp_path / "sleep"
        flag.touch() if kinds[step] == "teacher" else flag.unlink(missing_ok=True)
        if kinds[step] == "rank":  # asleep in its update, where the other waits in a collective
            learner.weights().on_ranks(wake_in_training, [(0.0,), (SLEPT_SECONDS,)])

    steps = Steps(prepare)
    prompts = [Prompt(d, f"{d}/{i}", (2, 3, 4 + i), "?", "!") for d in DOMAINS for i in range(2)]
    train(
        student=learner, sampler=StudentSampler(decoding, samples_per_prompt=1, batch_size=64), grader=pool,
        prompts=lambda step: prompts, steps=len(kinds), callbacks=steps,
    )  # fmt: skip
    pool.close()

    def seconds(kind: str, name: str) -> float:
        """Of the step of its kind in which least was waited: all that is beyond the sleep is the machine's."""
        return min(row[name] * row["seconds/step"] for k, row in zip(kinds, steps.rows, strict=True) if k == kind)

    def risen(kind: str, name: str) -> float:
        return seconds(kind, name) - seconds("plain", name)

    within = pytest.approx(SLEPT_SECONDS, rel=0.1)
    assert risen("teacher", "idle/ranks") == within
    assert risen("teacher", "idle/rank_longest") == within
    assert risen("teacher", "idle/teachers") == pytest.approx(0.0, abs=0.1 * SLEPT_SECONDS)
    assert risen("rank", "idle/rank_longest") == within
    assert risen("rank", "idle/ranks") == pytest.approx(SLEPT_SECONDS / 2, rel=0.1)
    assert risen("rank", "idle/teachers") == within


def test_shares_are_means_over_processes() -> None:
    row = {"seconds/step": 4.0, "seconds/teacher/a": 1.0, "seconds/teacher/b": 3.0, "teacher_processes": 4.0}
    shares = idle_shares(row, [1.0, 3.0])
    assert shares == {"idle/ranks": 0.5, "idle/rank_longest": 0.75, "idle/teachers": 0.75}
    assert idle_shares({"seconds/step": 2.0}, [3.0]) == {"idle/ranks": 0.0, "idle/rank_longest": 0.0}
    assert np.isfinite(list(shares.values())).all()

"""Methods of a user's own file: one that trains, one that makes its student; each is checked, and does its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import check, recipe, tokenizer_of

from mopd.distill.recipe import MergeRecipe
from mopd.distill.recipe.files import load_recipe
from mopd.distill.types import Prompt, Rollout, UserError
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.data import tasks_of
from mopd.recipes.resolve.merge_and_cascade import MadeStudent, MakingJob
from mopd.recipes.resolve.methods import METHODS, MadeMethod, Method, Parts, method_of
from mopd.rollouts.engines.base import FrozenModel

METHOD = '''
"""Methods of one's own: the student is rewarded for short answers; and the best teacher becomes the student."""
from mopd import MadeMethod, MadeStudent, Method, ScoredRollout


class Brevity:
    def score(self, microbatches):
        return [ScoredRollout(r, reward=1 / r.trained_tokens) for microbatch in microbatches for r in microbatch]

    def metrics(self):
        return {}


SHORT = Method(
    actor=lambda parts: parts.student(),
    grader=lambda parts: Brevity(),
    losses=frozenset({"policy_gradient"}),
    samples=True,
    rewards=True,
)


def best(job):
    for name, model in job.teachers.items():
        job.measure(f"candidates/{name}", model.path, 0)
    right = {name: sum(row.correct for row in job.rows() if row.model == f"candidates/{name}") for name in job.teachers}
    name = max(right, key=right.get)
    job.adopt(f"candidates/{name}", 1, {})
    return MadeStudent(job.teachers[name].path, step=1, steps=1)


BEST = MadeMethod(best, teachers="merge")
OTHER = "short"
'''


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "method.py").write_text(METHOD)
    return f"{tmp_path}/method.py"


def rollout(index: int, tokens: int) -> Rollout:
    prompt = Prompt("math", str(index), (5,), "", "")
    ids = np.arange(5, 6 + tokens).astype(np.int32)
    return Rollout(prompt, ids, np.arange(len(ids)) > 0, np.zeros(len(ids), np.float32), "length", (0, 0), index, index)


def test_a_method_that_trains(path: str, tmp_path: Path) -> None:
    rewarded: dict[str, Any] = {
        "method": f"{path}:SHORT",
        "domains": {"math": {"task": "arithmetic", "reward": True, "prompts": 4}},
        "teachers": {},
        "stages": {"base": recipe().stages["base"].model_dump(by_alias=True)},
        "rollout": {"samples_per_prompt": 2},
    }
    check(recipe(**rewarded, loss={"estimator": "policy_gradient", "reward_weight": 1.0}), tmp_path / "run")
    with pytest.raises(UserError, match=r"`loss.estimator` is 'k2', which method .*SHORT' does not use"):
        check(recipe(**rewarded, loss={"estimator": "k2"}), tmp_path / "run")
    method = method_of(f"{path}:SHORT")
    assert isinstance(method, Method)
    tokenizer, sampler = tokenizer_of("arithmetic"), object()

    def nobody() -> Any:
        raise AssertionError("neither teachers nor writers are asked for")

    parts = Parts(
        tokenizer, tasks_of(recipe(**rewarded).domains, tokenizer), taught={"math": {}}, rewarded=frozenset({"math"}),
        keep_verified=1, truncated="learn", student=lambda: sampler,  # type: ignore[arg-type, return-value]
        teachers=nobody, writers=nobody, players=nobody,
    )  # fmt: skip
    assert method.actor(parts) is sampler
    scored = method.grader(parts).score([[rollout(0, 1)], [rollout(1, 4)]])
    assert [(one.rollout.index, one.reward) for one in scored] == [(0, 1.0), (1, 0.25)]


class Desk:
    """Measures checkpoints by a table of verdicts, and notes what it is told."""

    def __init__(self, verdicts: dict[str, float]) -> None:
        self.verdicts = verdicts
        self.measured: list[tuple[str, str, int]] = []
        self.adopted: list[tuple[str, int]] = []

    def job(self, folder: Path, chain: dict[int, str] | None = None) -> MakingJob:
        return MakingJob(
            folder=folder,
            attempt="a",
            base=FrozenModel("base"),
            teachers={name: FrozenModel(name) for name in self.verdicts},
            chain=chain or {},
            taught={"math": dict.fromkeys(self.verdicts, 1.0 / max(1, len(self.verdicts)))},
            merge=MergeRecipe(),
            measure=lambda model, path, step: self.measured.append((model, path, step)),
            rows=lambda: [_Row(model, self.verdicts[path]) for model, path, _ in self.measured],  # type: ignore[misc]
            adopt=lambda candidate, step, metrics: self.adopted.append((candidate, step)),
            select=lambda last: min(chain or {0: ""}),
        )


class _Row:
    def __init__(self, model: str, correct: float) -> None:
        self.model, self.correct = model, correct


def test_a_method_that_makes_its_student(path: str, tmp_path: Path) -> None:
    check(recipe(method=f"{path}:BEST"), tmp_path / "run")
    method = method_of(f"{path}:BEST")
    assert isinstance(method, MadeMethod)
    desk = Desk({"one": 0.25, "two": 0.75})
    assert method.make(desk.job(tmp_path)) == MadeStudent("two", step=1, steps=1)
    assert desk.measured == [("candidates/one", "one", 0), ("candidates/two", "two", 0)]
    assert desk.adopted == [("candidates/two", 1)]


def test_a_cascade_measures_every_link_and_is_the_selected_one(tmp_path: Path) -> None:
    cascade = METHODS["cascade"]
    assert isinstance(cascade, MadeMethod)
    desk = Desk({})
    made = cascade.make(desk.job(tmp_path, chain={5: "first", 12: "second"}))
    assert made == MadeStudent("first", step=5, steps=12)
    assert desk.measured == [("student", "first", 5), ("student", "second", 12)]


def test_a_made_student_has_no_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`loss` is set and would change nothing"):
        check(recipe(method="merge", loss={"estimator": "k2"}), tmp_path / "run")


def test_what_is_no_method_is_refused(path: str, tmp_path: Path) -> None:
    for name in ("OTHER", "NOTHING"):
        with pytest.raises(UserError, match=f"`method` is .*:{name}'"):
            check(recipe(method=f"{path}:{name}"), tmp_path / "run")
    shipped = load_recipe("smoke", shipped=SHIPPED)
    assert method_of(shipped.method) is METHODS["mopd"]

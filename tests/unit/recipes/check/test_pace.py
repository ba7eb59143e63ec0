"""How long a run would take: its work part by part, what one process does in a second, and what follows from both."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import check, recipe

from mopd.distill.recipe import LoRA, Recipe
from mopd.distill.recipe.files import load_recipe
from mopd.recipes import SHIPPED
from mopd.recipes.check import pace
from mopd.recipes.check.pace import Pace, lasting, measure_pace, sentences
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check.plan.work import Part, flops_of

TWO_LANES = Pace({"write": 10.0, "score": 100.0, "train": 50.0}, {"write": 1.0, "score": 2.0, "train": 3.0}, 2, "here")


def by_name(plan: Plan) -> dict[str, float]:
    names = dict.fromkeys(part.name for part in plan.work)
    return {name: sum(part.flops for part in plan.work if part.name == name) for name in names}


def planned(tmp_path: Path, *overrides: str) -> Plan:
    return check(load_recipe("quickstart", overrides, shipped=SHIPPED), tmp_path / "run")


def test_a_runs_work_by_part(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    work = by_name(plan)
    assert list(work) == ["stages", "rollouts", "scores", "updates", "evaluations"]
    assert plan.flops == flops_of(plan.work) == sum(work.values()) - work["evaluations"]
    # Student and teachers have one shape: an update is three forwards, and each rollout is scored once.
    assert work["updates"] == 3 * work["scores"]
    assert 0.9 < work["rollouts"] / work["scores"] < 1  # the last token is never fed back
    assert {part.stage for part in plan.work if part.name == "stages"} == {"base", "math", "code", "reasoning"}
    twice = by_name(planned(tmp_path, "run.steps=800", "evaluate.samples_per_prompt=1"))
    assert [twice[name] / work[name] for name in ("stages", "rollouts", "updates")] == [1, 2, 2]
    # 20 and 40 evaluations of the student, base and teachers on validation questions; five models on 1,000 others.
    assert twice["evaluations"] / work["evaluations"] == pytest.approx(
        2 * ((40 + 4) * 200 + 5 * 1000) / ((20 + 4) * 200 + 5 * 1000)
    )


def test_processes_share_work_as_far_as_there_are_cores() -> None:
    parts = [
        Part("stages", "train", 1000.0, 2),
        Part("rollouts", "write", 100.0, 1),
        Part("rollouts", "write", 60.0, 8),
    ]
    assert TWO_LANES.seconds(parts) == {"stages": 10.0, "rollouts": 10.0 + 3.0}
    assert TWO_LANES.seconds(parts, runs=2) == {"stages": 10.0, "rollouts": 5.0 + 3.0}
    assert replace(TWO_LANES, lanes=1).seconds(parts) == {"stages": 20.0, "rollouts": 16.0}


def test_what_is_measured_is_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks as often as a token passes the model, on one thread."""
    passed, threads = [0], set[int]()

    def counted(work: Any, device: str) -> float:
        before = passed[0]
        work()
        threads.add(torch.get_num_threads())
        return (passed[0] - before) / 1000

    def forward(model: Any, args: Any, kwargs: Any) -> None:
        passed[0] += kwargs["input_ids"].numel()

    made = pace._made

    def watched(*arguments: Any) -> Any:
        model = made(*arguments)
        model.register_forward_pre_hook(forward, with_kwargs=True)
        return model

    monkeypatch.setattr(pace, "_seconds", counted)
    monkeypatch.setattr(pace, "_made", watched)
    state, before = torch.get_rng_state(), torch.get_num_threads()
    asked = check(recipe(), tmp_path / "run").measured
    found = measure_pace(asked)
    assert threads == {1}
    assert torch.get_num_threads() == before
    assert torch.equal(state, torch.get_rng_state())
    # Each token of a text passes once when it is scored or learnt from; of a written one all but the last do.
    assert found.tokens["score"] == found.tokens["train"] == pytest.approx(1000)
    length = asked.prompt + asked.answer
    assert found.tokens["write"] == pytest.approx(1000 * asked.answer / (length - 1))
    cost = asked.info.cost
    assert found.flops["score"] == pytest.approx(1000 * cost.forward([length]) / length)
    assert found.flops["train"] == pytest.approx(3 * found.flops["score"])


def test_no_measurement_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one text takes ten seconds no batch is tried, however many a microbatch holds."""
    tried: list[float] = []

    def clock(work: Any, device: str) -> float:
        tried.append(1.0)
        work()
        return 10.0

    monkeypatch.setattr(pace, "_seconds", clock)
    asked = replace(check(recipe(), tmp_path / "run").measured, microbatch_tokens=10**9)
    found = measure_pace(asked)
    assert len(tried) <= 10
    assert all(math.isfinite(rate) and rate > 0 for rate in found.flops.values())


def test_a_model_with_an_adapter_is_measured_with_it(tmp_path: Path) -> None:
    asked = replace(check(recipe(), tmp_path / "run").measured, lora=LoRA(rank=2))
    assert any("lora" in name for name, _ in pace._made(asked, torch.device("cpu")).named_parameters())


def test_sentences_say_what_is_in_and_what_is_not() -> None:
    first, second = sentences(TWO_LANES, [Part("updates", "train", 720_000.0, 2)])
    assert first == "measured on here, one process: 1 tokens/s written, 2 tokens/s scored, 3 tokens/s learnt from"
    assert second.startswith("time: about 2.0 h here (updates 2.0 h), processes 2 at a time, ")
    assert "come on top" in second


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1.7 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


def test_a_run_that_samples_nothing_writes_answers_to_questions_alone(tmp_path: Path) -> None:
    values = load_recipe("smoke", [], shipped=SHIPPED).model_dump(
        mode="json", by_alias=True, exclude={"loss", "teachers"}
    )
    domains = {name: domain | {"teacher": None} for name, domain in values["domains"].items()}
    alone = {"method": "supervised", "loss": {"estimator": "nll"}, "stages": {"base": values["stages"]["base"]}}
    given = Recipe.model_validate(values | alone | {"domains": domains})
    assert list(by_name(check(given, tmp_path / "run"))) == ["stages", "updates", "evaluations"]

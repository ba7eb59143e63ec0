"""Where processes go: devices, parts of GPUs, resources; what a machine or a cluster has no room for is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import problems, recipe, save_model, tokenizer_of, warnings
from pydantic import ValidationError

from mopd.distill.recipe import Engine, Recipe, TeacherRecipe
from mopd.recipes.resolve.placement import (
    ResourceRequest,
    gpus_needed,
    resource_requests,
    stage_requests,
    stages_at_a_time,
    unplaced,
)
from mopd.recipes.resolve.resolved import resolve


def two(base: str, **teacher: Any) -> dict[str, Any]:
    """A recipe's sections with a second teacher, of stanza ``teacher``."""
    return {
        "student": {"model": base, "engine": {"ranks": 2}},
        "domains": {
            "math": {"task": "arithmetic", "teacher": "one", "prompts": 4},
            "rest": {"task": "ordering", "teacher": "two", "prompts": 4},
        },
        "teachers": {"one": {"model": base}, "two": {"model": f"{base}/", **teacher}},
        "stages": {},
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "base", tokenizer_of("arithmetic", "ordering"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, as torch would tell of one with two GPUs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def on(made: Recipe, device: str) -> Recipe:
    return made.model_copy(update={"device": device})


def test_what_each_process_takes_follows_its_teacher(base: str) -> None:
    made = recipe(**two(base, replicas=3, gpus=0.25, resources={"big": 2.0}), rollout={"workers": 1})
    expected = [
        ResourceRequest("the student's ranks", 2, {"GPU": 1.0}),
        ResourceRequest("sampler workers", 1, {"GPU": 1.0}),
        ResourceRequest("teacher one", 1, {"GPU": 1.0}),
        ResourceRequest("teacher two", 3, {"GPU": 0.25, "big": 2.0}),
    ]
    assert list(resource_requests(resolve(on(made, "cuda")))) == expected
    on_cpu = recipe(**two(base, device="cpu"))
    assert [claim.each for claim in resource_requests(resolve(on(on_cpu, "cuda")))][-2:] == [{"GPU": 1.0}, {}]
    assert all(claim.each == {} for claim in resource_requests(resolve(on(on_cpu, "cpu"))))
    alone = recipe(**two(base, device="cuda"))
    assert [claim.each for claim in resource_requests(resolve(on(alone, "cpu")))][-2:] == [{}, {"GPU": 1.0}]


def test_teachers_that_take_turns_take_what_those_that_are_held_take(base: str) -> None:
    sections = two(base, gpus=0.5)
    sections["teachers"]["one"]["gpus"] = 0.5
    sections["teachers"]["away"] = {"model": base, "endpoint": "http://here:8000/v1"}
    made = recipe(**sections, run={"resident_teachers": 1})
    assert list(resource_requests(resolve(on(made, "cuda"))))[2:] == [
        ResourceRequest("teacher away", 1, {}),
        ResourceRequest("teachers one, two in turn", 1, {"GPU": 0.5}),
    ]


@pytest.mark.parametrize(
    ("parts", "gpus"),
    [([], 0), ([1, 1], 2), ([0.25] * 4, 1), ([0.6] * 3, 3), ([0.1] * 10, 1), ([1, 0.5, 0.5, 0.3], 3), ([0.0], 0)],
)
def test_parts_of_gpus_share_one_where_they_fit_whole(parts: list[float], gpus: int) -> None:
    assert gpus_needed([ResourceRequest("", 1, {"GPU": part} if part else {}) for part in parts]) == gpus


def test_a_machine_with_too_few_gpus_is_told_by_whom_they_are_taken(two_gpus: None, base: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path / "run", **two(base), device="cuda")
    assert "2 for the student's ranks, 1 for teacher one, 1 for teacher two" in found
    assert "needs 4 GPUs at a time, and this machine has 2" in found
    sections = two(base, gpus=0.5)
    sections["teachers"]["one"]["gpus"] = 0.5
    (found,) = problems(tmp_path / "run", **sections, device="cuda")
    assert "needs 3 GPUs at a time" in found


def test_a_device_or_a_resource_that_is_not_here_is_refused_by_its_leaf(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = problems(tmp_path / "run", **two(base, device="cuda"))
    assert "`teachers.two.device` is cuda, and torch finds no GPU" in found
    (found,) = problems(tmp_path / "run", **two(base, resources={"big": 1.0}))
    assert "`teachers.two.resources` asks for big, which a cluster of this machine alone has not" in found
    (warning,) = warnings(recipe(**two(base, device="cpu", gpus=0.5)))
    assert warning.startswith("`teachers.two.gpus` is set and changes nothing")


def test_one_card_holds_student_teachers_and_sampler_and_stages_take_turns(base: str) -> None:
    sections = two(base, gpus=0.2)
    sections["teachers"]["one"]["gpus"] = 0.2
    sections["student"] = {**sections["student"], "engine": {"ranks": 1, "gpus": 0.4}}
    stage = {"from": base, "engine": {"ranks": 1}}
    sections["stages"] = {"a": stage, "b": stage, "c": stage}
    made = recipe(**sections, rollout={"workers": 1, "gpus": 0.2})
    resolved = resolve(on(made, "cuda"))
    assert gpus_needed(list(resource_requests(resolved))) == 1
    requests = stage_requests(resolved)
    assert [stages_at_a_time(requests, most=2, gpus=gpus) for gpus in (0, 1, 2, 3)] == [1, 1, 2, 2]
    assert stages_at_a_time(stage_requests(resolve(on(made, "cpu"))), most=2, gpus=0) == 2
    half = {"from": base, "engine": {"ranks": 1, "gpus": 0.5}}
    shared = recipe(**{**sections, "stages": {"a": half, "b": half}})
    assert stages_at_a_time(stage_requests(resolve(on(shared, "cuda"))), most=2, gpus=1) == 2


def test_two_ranks_do_not_share_a_card() -> None:
    with pytest.raises(ValidationError, match="NCCL lets no two ranks share a card"):
        Engine(ranks=2, gpus=0.5)


@pytest.mark.parametrize(
    ("resources", "told"),
    [({"GPU": 1.0}, "names GPU, which Ray counts by itself"), ({"big": 1.5}, "asks for 1.5 of big; above 1")],
)
def test_resources_that_ray_would_not_take_are_refused(resources: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TeacherRecipe(model="./somewhere", resources=resources)


def test_a_cluster_without_a_node_for_a_process_or_without_enough_is_told() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"GPU": 1.0, "big": 1.0}]
    assert (
        unplaced(
            [ResourceRequest("ranks", 2, {"GPU": 1.0}), ResourceRequest("teacher t", 1, {"GPU": 0.5, "big": 1.0})],
            nodes,
        )
        == []
    )
    (found,) = unplaced([ResourceRequest("teacher t", 1, {"GPU": 1.5, "big": 1.0})], nodes)
    assert found.startswith("teacher t: each process takes 1.5 GPU and 1 big, and no node of the Ray cluster has that")
    (found,) = unplaced(
        [ResourceRequest("ranks", 3, {"GPU": 1.0}), ResourceRequest("teacher t", 2, {"GPU": 0.5})], nodes
    )
    assert found.startswith("the run needs 4 GPU at a time, and the nodes of the Ray cluster have 3 together")

"""Where a recipe's processes go: the device of each, what it takes of its node, and whether there is a node for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mopd.distill.recipe import Recipe
from mopd.distill.types import UserError
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.sources import teacher_groups, turn_takers
from mopd.teachers.kinds import kind_of

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Processes of one kind: how many there are, and what each takes of its node, by Ray's names of resources."""

    who: str
    count: int
    each: Mapping[str, float]


def resolve_device(asked: Literal["auto", "cpu", "cuda"]) -> Device:
    """``auto`` takes a GPU where there is one."""
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def teacher_device(recipe: Recipe, name: str, device: Device) -> Device:
    """Where a teacher scores, in a run on ``device``."""
    teacher = recipe.teachers[name]
    if not kind_of(teacher).has_weights:
        return "cpu"  # its process only asks
    return device if teacher.device == "auto" else teacher.device


def teacher_gpus(recipe: Recipe, name: str, device: Device) -> float:
    """The part of a GPU that a teacher's process takes, in a run on ``device``."""
    return recipe.teachers[name].gpus if teacher_device(recipe, name, device) == "cuda" else 0.0


def resource_requests(recipe: Recipe, device: Device) -> Iterator[ResourceRequest]:
    """What lives at the same time while the student is trained."""
    whole = {"GPU": 1.0} if device == "cuda" else {}
    yield ResourceRequest("the student's ranks", recipe.student.engine.ranks, whole)
    yield ResourceRequest("sampler workers", recipe.rollout.workers, whole)
    role = METHODS[recipe.method].teachers
    groups = teacher_groups(recipe) if role == "grade" else [[name] for name in recipe.teachers if role == "write"]
    turns = turn_takers(recipe) if role == "grade" else []
    for names in groups:
        if names not in turns:
            count = recipe.teachers[names[0]].replicas if role == "grade" else 1
            yield ResourceRequest(f"teacher {', '.join(names)}", count, _takes(recipe, names[0], device))
    if turns:
        who = f"teachers {', '.join(name for names in turns for name in names)} in turn"
        # All of them take the same: recipes/check/routes.py.
        yield ResourceRequest(who, recipe.run.resident_teachers or 0, _takes(recipe, turns[0][0], device))


def _takes(recipe: Recipe, name: str, device: Device) -> dict[str, float]:
    """What a process of a teacher takes of its node."""
    gpus = teacher_gpus(recipe, name, device)
    return ({"GPU": gpus} if gpus else {}) | recipe.teachers[name].resources


def check_device(recipe: Recipe) -> list[str]:
    """Whether the devices that the recipe asks for are here; with RAY_ADDRESS, they may be elsewhere."""
    import torch

    asked = {"device": recipe.device} | {f"teachers.{name}.device": t.device for name, t in recipe.teachers.items()}
    clustered = bool(os.environ.get("RAY_ADDRESS"))
    missing = [
        f"`{leaf}` is cuda, and torch finds no GPU here; take `device: auto`, or a torch build with CUDA"
        for leaf, value in asked.items()
        if value == "cuda" and not torch.cuda.is_available() and not (clustered and leaf != "device")
    ]
    if missing or clustered:
        return missing
    # Ray would wait for ever for what this machine has not.
    device, there = resolve_device(recipe.device), torch.cuda.device_count()
    alone = [
        f"`teachers.{name}.resources` asks for {', '.join(teacher.resources)}, which a cluster of this machine alone "
        "has not; start its nodes with `ray start --resources`, and name the cluster in RAY_ADDRESS"
        for name, teacher in recipe.teachers.items()
        if teacher.resources
    ]
    of_stages = sorted((stage.engine.ranks for stage in recipe.stages.values()), reverse=True)
    together = sum(of_stages[: recipe.run.parallel_stages]) if device == "cuda" else 0
    living = [claim for claim in resource_requests(recipe, device) if claim.count]
    told = ", ".join(f"{claim.count} for {claim.who}" for claim in living)
    phases = {
        f"the run ({told})": gpus_needed(living),
        f"stages, {recipe.run.parallel_stages} at a time": together,
    }
    return alone + [
        f"{phase} needs {needed} GPUs at a time, and this machine has {there}; lower the engine's `ranks`, a teacher's "
        "`gpus` or `run.parallel_stages`, take `device: cpu`, or name a Ray cluster in RAY_ADDRESS"
        for phase, needed in phases.items()
        if needed > there
    ]


def gpus_needed(living: list[ResourceRequest]) -> int:
    """GPUs for processes that live at the same time, each on one: the largest parts first, each where there is room."""
    room: list[float] = []
    for part in sorted((claim.each.get("GPU", 0.0) for claim in living for _ in range(claim.count)), reverse=True):
        place = next((i for i, left in enumerate(room) if left >= part - 1e-9), None)
        if place is None:
            room.append(1.0)
            place = -1
        room[place] -= part
    return len([left for left in room if left < 1])


def check_cluster(recipe: Recipe, device: Device) -> None:
    """Whether the Ray cluster that was joined has a node for every process, and enough of them.

    Raises:
        UserError: it has not; Ray would wait for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if problems := unplaced(list(resource_requests(recipe, device)), nodes):
        raise UserError(*problems)


def unplaced(living: list[ResourceRequest], nodes: list[dict[str, Any]]) -> list[str]:
    """What a cluster lacks, each a sentence: a node that has all that one process takes, or enough for all of them.

    Args:
        nodes: the resources of each, by Ray's names.
    """
    problems: list[str] = []
    needed: dict[str, float] = {}
    for claim in living:
        if claim.count and not any(all(node.get(k, 0.0) >= v for k, v in claim.each.items()) for node in nodes):
            takes = " and ".join(f"{amount:g} {name}" for name, amount in claim.each.items())
            problems.append(
                f"{claim.who}: each process takes {takes}, and no node of the Ray cluster has that; add one"
            )
        for name, amount in claim.each.items():
            needed[name] = needed.get(name, 0.0) + amount * claim.count
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
    return problems or [
        f"the run needs {amount:g} {name} at a time, and the nodes of the Ray cluster have {there[name]:g} together; "
        "add a node, or lower what the recipe takes"
        for name, amount in needed.items()
        if amount > there[name] + 1e-9
    ]

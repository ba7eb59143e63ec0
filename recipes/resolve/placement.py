"""Where a recipe's processes go: the device of each, what it takes of its node, and whether there is a node for it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.distill.types import UserError
from mopd.recipes.resolve.resolved import Resolved

RAY_PREFIX = "mopd-r"
"""Of the name of a folder that a run's own Ray cluster writes to."""

SOCKET_BYTES = 107 - len("/session_2026-11-29_03-35-05_918248_1234567/sockets/plasma_store")
"""Of a Unix socket's path (unix(7)) so many bytes are left for the folder that Ray writes to."""
MOST_GPUS = 10_000
"""For so many it does not matter how processes that share one lie on them."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Processes of one kind: how many there are, and what each takes of its node, by Ray's names of resources."""

    who: str
    count: int
    each: Mapping[str, float]


def resource_requests(resolved: Resolved) -> Iterator[ResourceRequest]:
    """What lives at the same time while the student is trained."""
    recipe, teachers = resolved.recipe, resolved.teachers
    yield ResourceRequest("the student's ranks", recipe.student.engine.ranks, _gpu(resolved.rank_gpus))
    yield ResourceRequest("sampler workers", recipe.rollout.workers, _gpu(resolved.sampler_gpus))
    for name in resolved.writers:
        yield ResourceRequest(f"teacher {name}", 1, teachers[name].takes)
    if not resolved.method.teachers_grade:
        return
    for names in resolved.groups:
        if names not in resolved.turn_takers:
            first = teachers[names[0]]
            yield ResourceRequest(f"teacher {', '.join(names)}", first.settings.replicas, first.takes)
    if resolved.turn_takers:
        who = f"teachers {', '.join(name for names in resolved.turn_takers for name in names)} in turn"
        # All of them take the same: recipes/check/routes.py.
        takes = teachers[resolved.turn_takers[0][0]].takes
        yield ResourceRequest(who, recipe.run.resident_teachers or 0, takes)


def _gpu(part: float) -> dict[str, float]:
    return {"GPU": part} if part else {}


def temporary_folder() -> Path:
    """Where the folder of a cluster is made: RAY_TMPDIR, or the system's folder of temporary files.

    Raises:
        UserError: Ray's sockets in it would have names that are too long.
    """
    name, base = "RAY_TMPDIR", os.environ.get("RAY_TMPDIR")
    if not base:
        name, base = "TMPDIR", tempfile.gettempdir()
    room = SOCKET_BYTES - len(f"/{RAY_PREFIX}12345678/ray")
    if (length := len(os.fsencode(base))) > room:
        raise UserError(
            f"{name} is {base}, of {length} bytes, and Ray makes Unix sockets below it, whose paths have 107 at most: "
            f"it may have {room}; set RAY_TMPDIR to a folder with a shorter name on a disk of this machine, as in "
            "RAY_TMPDIR=/tmp (TMPDIR may stay as it is)"
        )
    return Path(base)


def stage_requests(resolved: Resolved) -> list[ResourceRequest]:
    """What each stage takes while it is trained, those that need the most GPUs first."""
    requests = [
        ResourceRequest(f"stage {name}", stage.engine.ranks, {"GPU": stage.engine.gpus})
        for name, stage in resolved.recipe.stages.items()
        if resolved.device == "cuda"
    ]
    return sorted(requests, key=lambda request: -gpus_needed([request]))


def stages_at_a_time(requests: list[ResourceRequest], *, most: int, gpus: float) -> int:
    """How many stages run side by side on ``gpus`` cards: ``most``, or fewer where they do not fit.

    Two stages that each wait for a card that the other one holds would wait for ever.

    Args:
        requests: see :func:`stage_requests`.
    """
    return next((n for n in range(most, 1, -1) if gpus_needed(requests[:n]) <= gpus), 1) if requests else most


def check_device(resolved: Resolved) -> list[str]:
    """Whether the devices that a recipe asks for are here and Ray can start; with RAY_ADDRESS they may be away."""
    import torch

    recipe = resolved.recipe
    asked = {"device": recipe.device} | {f"teachers.{name}.device": t.device for name, t in recipe.teachers.items()}
    clustered = bool(os.environ.get("RAY_ADDRESS"))
    missing = [
        f"`{leaf}` is cuda, and torch finds no GPU here; take `device: auto`, or a torch build with CUDA"
        for leaf, value in asked.items()
        if value == "cuda" and not torch.cuda.is_available() and not (clustered and leaf != "device")
    ]
    if clustered:
        return missing
    try:
        temporary_folder()
    except UserError as error:
        missing += error.problems
    if missing:
        return missing
    # Ray would wait for ever for what this machine has not.
    there = torch.cuda.device_count()
    alone = [
        f"`teachers.{name}.resources` asks for {', '.join(teacher.resources)}, which a cluster of this machine alone "
        "has not; start its nodes with `ray start --resources`, and name the cluster in RAY_ADDRESS"
        for name, teacher in recipe.teachers.items()
        if teacher.resources
    ]
    living = [request for request in resource_requests(resolved) if request.count]
    processes = ", ".join(f"{request.count} for {request.who}" for request in living)
    phases = {
        f"the run ({processes})": gpus_needed(living),
        "a stage, alone": gpus_needed(stage_requests(resolved)[:1]),
    }
    return alone + [
        f"{phase} needs {needed} GPUs at a time, and this machine has {there}; lower `ranks` or `gpus` of an engine, "
        "`gpus` of a teacher or `rollout.workers`, take `device: cpu`, or name a Ray cluster in RAY_ADDRESS"
        for phase, needed in phases.items()
        if needed > there
    ]


def gpus_needed(living: list[ResourceRequest]) -> int:
    """GPUs for processes that live at the same time, each on one: the largest parts first, each where there is room."""
    room: list[float] = []
    takes = [(request.each.get("GPU", 0.0), request.count) for request in living]
    if (many := sum(part * count for part, count in takes)) > MOST_GPUS:
        return math.ceil(many)
    for part in sorted((part for part, count in takes if part for _ in range(count)), reverse=True):
        place = next((i for i, left in enumerate(room) if left >= part - 1e-9), None)
        if place is None:
            room.append(1.0)
            place = -1
        room[place] -= part
    return len([left for left in room if left < 1])


def check_cluster(resolved: Resolved) -> None:
    """Whether the Ray cluster that was joined has a node for every process, and enough of them.

    Raises:
        UserError: it has not; Ray would wait for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if problems := unplaced(list(resource_requests(resolved)), nodes):
        raise UserError(*problems)


def cluster_gpus() -> float:
    """How many GPUs the nodes of the Ray cluster that was joined have together."""
    import ray

    return ray.cluster_resources().get("GPU", 0.0)


def unplaced(living: list[ResourceRequest], nodes: list[dict[str, Any]]) -> list[str]:
    """What a cluster lacks, each a sentence: a node that has all that one process takes, or enough for all of them.

    Args:
        nodes: the resources of each, by Ray's names.
    """
    problems: list[str] = []
    needed: dict[str, float] = {}
    for request in living:
        if request.count and not any(all(node.get(k, 0.0) >= v for k, v in request.each.items()) for node in nodes):
            takes = " and ".join(f"{amount:g} {name}" for name, amount in request.each.items())
            problems.append(
                f"{request.who}: each process takes {takes}, and no node of the Ray cluster has that; add one"
            )
        for name, amount in request.each.items():
            needed[name] = needed.get(name, 0.0) + amount * request.count
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
    return problems or [
        f"the run needs {amount:g} {name} at a time, and the nodes of the Ray cluster have {there[name]:g} together; "
        "add a node, or lower what the recipe takes"
        for name, amount in needed.items()
        if amount > there[name] + 1e-9
    ]

"""Whether a machine has room for a plan: its memory and disk beside what is needed, and the leaf that asks for most."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from mopd.distill.recipe import Recipe
from mopd.recipes.check.plan.processes import GIB
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.resolve.run_folder import check_folder, existing_parent, size

FAR = 2.0
"""Times the memory that a machine has: beyond it an estimate, which may be wrong by half, leaves no hope."""
BEYOND = 1.15
"""Times the memory of a card: an estimate may be wrong by so much, and a card has no swap."""
LOWER_CARD = (
    "lower student.engine.microbatch_tokens or rollout.batch_size, set student.engine.gradient_checkpointing or "
    "run.resident_teachers, take more ranks, or give processes larger parts of a card (`gpus`) so that fewer share one"
)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a container's memory, in bytes, or the word max."""


@dataclass(frozen=True, slots=True)
class Room:
    """What there is, in bytes; None: not known, or elsewhere.

    Attributes:
        disk_bytes: free on the disk of a run's folder.
        memory_bytes: of the host.
        card_bytes: of each card; of the smallest, where they differ.
    """

    disk_bytes: float | None
    memory_bytes: float | None
    card_bytes: float | None = None


def room(out: Path, *, card_gib: float | None = None, elsewhere: bool = False) -> Room:
    """What there is for a run in the folder ``out``; ``elsewhere``: the plan is for another machine."""
    card = card_here(card_gib, elsewhere=elsewhere)
    if elsewhere:
        return Room(None, None, card)
    return Room(shutil.disk_usage(existing_parent(out)).free, memory_here(), card)


def memory_here() -> float:
    """Bytes of this machine's memory, or of its container's; cards have their own."""
    total = float(psutil.virtual_memory().total)
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        total = min(total, float(limit))
    return total


def card_here(card_gib: float | None, *, elsewhere: bool = False) -> float | None:
    """Bytes of a card: of this machine's smallest; where it has none, or the plan is for another, the recipe's."""
    if not elsewhere and torch.cuda.is_available():
        return float(min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())))
    return None if card_gib is None else card_gib * GIB


@dataclass(frozen=True, slots=True)
class Asker:
    """A leaf that asks for memory or disk: what it has, and what is needed where it has the least that makes sense."""

    leaf: str
    value: float
    least: int
    needed_bytes: float


def lacks_memory(plan: Plan, asker: Callable[[], Asker | None], there: float) -> list[str]:
    """Whether a plan needs far more memory than there is, as sentences; a little more is a warning of the plan's.

    Args:
        asker: finds the leaf that asks for most of it; not called where there is enough.
        there: bytes of memory; a Ray cluster that the run joins has its own.
    """
    needed = plan.memory_bytes
    if needed <= FAR * there or os.environ.get("RAY_ADDRESS"):
        return []
    return [
        f"about {size(needed)} of memory are needed at the peak, and this machine has {size(there)}; "
        f"{words(asker(), plan, needed)}, or see the plan alone with `mopd check --plan-only`"
    ]


def lacks_cards(plan: Plan, there: float | None) -> list[str]:
    """Whether more lies on one card than it holds, as sentences with what takes it.

    Args:
        there: bytes of a card; None: nobody knows.
    """
    card = plan.fullest_card
    if card is None or there is None or card.needed_bytes <= BEYOND * there:
        return []
    lying = ", ".join(f"{name} {size(taken)}" for name, taken in card.bytes_of.items())
    return [
        f"one card holds {size(there)}, and about {size(card.needed_bytes)} are to lie on it at a time ({lying}); "
        f"{LOWER_CARD}, or see the plan alone with `mopd check --plan-only`"
    ]


def lacks_disk(plan: Plan, asker: Callable[[], Asker | None], out: Path) -> list[str]:
    """Whether a run's folder cannot be written, or its disk has not what a plan needs, as sentences."""
    missing = max(0.0, plan.disk_bytes - bytes_in(out))  # a resumed run has some already
    problems = check_folder(out, needed_bytes=missing)
    if problems and not check_folder(out, needed_bytes=0):
        return [f"{problem}; {words(asker(), plan, plan.disk_bytes)}" for problem in problems]
    return problems


def bytes_in(folder: Path, *, most: int = 200_000) -> float:
    """What the files below a folder hold; no more than ``most`` of them are looked at."""
    total = 0.0
    files = (Path(above, name) for above, _, names in os.walk(folder) for name in names)
    for path in itertools.islice(files, most):
        with contextlib.suppress(OSError):  # it has just been removed
            total += path.lstat().st_size
    return total


def words(asker: Asker | None, plan: Plan, needed: float) -> str:
    """What asks for the most of ``needed`` bytes, as a part of a sentence that says what to do."""
    if asker is not None and asker.needed_bytes < needed / 2:
        return (
            f"`{asker.leaf}` asks for the most of it: it is {asker.value:,.15g}, and with {asker.least} "
            f"{size(asker.needed_bytes)} would do; lower it"
        )
    largest = max(plan.models, key=lambda model: model.parameters)
    smaller = "take a smaller model" + (", or smaller sizes in its `config`" if largest.leaf.endswith(".from") else "")
    return f"the most of it are the {largest.parameters:.3g} parameters of {largest.name} (`{largest.leaf}`); {smaller}"


def find_asker(recipe: Recipe, measure: Callable[[Recipe], float]) -> Asker | None:
    """The leaf without which the least would be needed; None where there is no such leaf.

    Args:
        measure: bytes that a recipe needs.
    """
    askers = [
        Asker(".".join(keys), value, least, measure(_with(recipe, keys, least)))
        for keys, value, least in _counts(recipe)
        if value > least
    ]
    return min(askers, key=lambda asker: asker.needed_bytes, default=None)


def _counts(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """The leaves that multiply what a run takes: the keys, the value, the least that makes sense."""

    def of(section: Any, *above: str, **least: int) -> Iterator[tuple[tuple[str, ...], int, int]]:
        for name, value in least.items():
            yield (*above, name), getattr(section, name), value

    yield from of(recipe.student.engine, "student", "engine", ranks=1, microbatch_tokens=1)
    yield from of(recipe.rollout, "rollout", workers=0, samples_per_prompt=1, max_new_tokens=1)
    yield from of(recipe.run, "run", parallel_stages=1, keep_checkpoints=1, steps=1)
    yield from of(recipe.evaluate, "evaluate", validation_prompts=1, test_prompts=1)
    for name, domain in recipe.domains.items():
        yield from of(domain, "domains", name, prompts=1)
    for name, teacher in recipe.teachers.items():
        yield from of(teacher, "teachers", name, replicas=1)
    for name, stage in recipe.stages.items():
        yield from of(stage, "stages", name, prompts=1, samples_per_prompt=1, steps=1)
        yield from of(stage.engine, "stages", name, "engine", ranks=1, microbatch_tokens=1)


def _with(section: Any, keys: Sequence[str], value: int) -> Any:
    """The same section with another value at a path of keys."""
    key, *rest = keys
    if isinstance(section, dict):
        return {**section, key: _with(section[key], rest, value) if rest else value}
    return section.model_copy(update={key: _with(getattr(section, key), rest, value) if rest else value})

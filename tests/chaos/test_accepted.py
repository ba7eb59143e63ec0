"""`make mutate`: a hundred recipes that `mopd check` accepts, mutated by seed, are run: exit 0, finite, weights moved.

Everything of a run is in one process, without Ray (tests/unit/inline_ray_kit.py): a run takes four seconds of a core.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from fork_kit import ForkServer
from mutation_kit import Mutation, mutations, write_folder, write_yaml

PIECES, RUNS, SEED = 10, 10, 0
COUNTS = (
    "steps",
    "prompts",
    "samples_per_prompt",
    "validation_prompts",
    "test_prompts",
    "graded_prompts",
    "warmup_steps",
)
"""Leaves that multiply the work: more of it is not another run."""
ELSEWHERE = ("student.engine.ranks", "stages.math.engine.ranks")
"""Leaves that need processes; tests/integration has them."""
RULES = ("evaluate.min_headroom",)
"""Leaves that end a run whose teachers know too little, as all do here."""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(runs=True, cpu_seconds=200)
    yield server
    server.close()


def drawn(seed: int) -> Iterator[Mutation]:
    """Mutations in random order, each leaf and value once, none that only takes longer."""
    each = {str(mutation): mutation for mutation in mutations(seed, of_each=16)}
    order = sorted(each)
    random.Random(seed).shuffle(order)
    for name in order:
        key = each[name].path.rpartition(".")[2]
        if each[name].path not in (*ELSEWHERE, *RULES) and not (
            key in COUNTS and each[name].value not in ("one", "two")
        ):
            yield each[name]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, float):
        yield value


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(tensor, after[name]) for name, tensor in before.items() if name in after)


def wrong(out: Path) -> str | None:
    """What is wrong with a finished run: a number that is not finite, weights that never moved."""
    for path in out.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            if not all(map(math.isfinite, numbers(json.loads(line)))):
                return f"{path.relative_to(out)} has {line[:500]}"
    models = {str(path.relative_to(out)): weights(path) for path in out.rglob("student")}
    models |= {str(path.relative_to(out)): weights(path) for path in out.rglob("initial")}
    for name, tensors in models.items():
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return f"the weights of {name} are not finite"
    start = "stages/base/student" if "stages/base/student" in models else "initial"
    if not moved(models[start], models["student"]):
        return f"the student is {start}, unmoved"
    if "stages/base/student" in models and not moved(models["stages/base/initial"], models["stages/base/student"]):
        return "the base is as it was initialised"
    return None


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("piece", range(PIECES))
def test_what_is_accepted_runs(server: ForkServer, tmp_path: Path, piece: int) -> None:
    folder = tmp_path / "work"
    write_folder(folder)
    ran, seconds, problems = 0, 0.0, []
    for mutation in itertools.islice(drawn(SEED), piece, None, PIECES):
        select = [] if mutation.path == "evaluate.select" else ["evaluate.select=last"]  # the first one would not move
        (folder / "recipe.yaml").write_text(write_yaml(mutation.tree))
        ended = server.mopd(folder, "run", "./recipe.yaml", "--out", "./run", *select)
        if ended.code == 2 and "nothing was run" in ended.output:
            continue
        ran, seconds = ran + 1, seconds + ended.cpu_seconds
        problem = f"ends with code {ended.code}: {ended.output[-3000:]}" if ended.code != 0 else wrong(folder / "run")
        if problem is not None:
            problems.append(f"{mutation}: {problem}")
        print(f"{ran}: {mutation} {'ran' if problem is None else 'FAILED'}, {ended.cpu_seconds:.1f} s", flush=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        if ran == RUNS:
            break
    assert ran == RUNS
    assert not problems, "\n\n".join(problems)
    print(f"{ran} runs, {seconds:.0f} s of CPU time")

"""`make bench`: a step of the quickstart, attention, packing, rollouts, episodes, teachers, the sandbox.

JSON comes first, then tables. Every figure is measured in this run, on this machine, as the median over steps; compare
ratios within one run only. The student is trained for a few steps first, so that its rollouts have the lengths of real
ones.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from mopd.distill.recipe.files import load_recipe
from mopd.distill.tracking.tracker import read_jsonl
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.run.launch import run
from mopd.rollouts.sampler import GoldSampler
from mopd.rollouts.tokenizer import completion_ids
from mopd.teachers.kinds.checkpoint import TeacherModel
from tests.benchmarks import attention, drafts, episodes, generation, hidden, packing, sandbox, teachers

ROLES = ("generation", "scoring", "update")
WARM_UP_STEPS = 4
SHORT = ("steps=4", "plateau=null", "optimizer.warmup_steps=1", "optimizer.decay_steps=1")
QUICKLY = (
    "run.steps=16",
    "run.plateau=null",
    "student.optimizer.decay_steps=4",
    "run.evaluate_every=16",
    "run.save_every=16",
    "evaluate.validation_prompts=20",
    "evaluate.test_prompts=20",
    "stages.base.steps=80",
    *(f"stages.{name}.{leaf}" for name in ("math", "code", "reasoning") for leaf in SHORT),
    "track.wandb.mode=disabled",
)


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The training rows of a run after its warm-up."""
    return [r for r in read_jsonl(out / "metrics.jsonl") if r["kind"] == "train" and r["step"] > WARM_UP_STEPS]


def breakdown(ranks: int, out: Path) -> dict[str, float]:
    """Median seconds of each role of a step, its tokens per second, and the shares in which ranks and teachers wait."""
    recipe = load_recipe("quickstart", [*QUICKLY, f"student.engine.ranks={ranks}"], shipped=SHIPPED)
    run(recipe, out)
    rows = steps_of(out)
    figures = {f"{role}_seconds": statistics.median(row[f"seconds/{role}"] for row in rows) for role in ROLES}
    figures["step_seconds"] = statistics.median(row["seconds/step"] for row in rows)
    figures["generation_tokens_per_second"] = statistics.median(
        row["tokens/generation"] / row["seconds/generation"] for row in rows
    )
    figures["update_tokens_per_second"] = statistics.median(
        row["tokens/update"] / row["seconds/update"] for row in rows
    )
    for who in ("ranks", "teachers"):
        figures[f"idle_share_of_{who}"] = statistics.median(row[f"idle/{who}"] for row in rows)
    return figures


def scoring_tokens_per_second(out: Path) -> float:
    """Tokens, prompts included, that one teacher in this process scores in a second, whole vocabulary."""
    recipe = load_recipe("quickstart", [], shipped=SHIPPED)
    path = str(out / "stages" / "math" / "student")
    tokenizer = load_tokenizer(path)
    source = prompt_source(recipe.trained_domains, tasks_of(recipe.domains, tokenizer), tokenizer, seed=recipe.seed)
    (rollouts,) = GoldSampler(lambda answer: completion_ids(tokenizer, answer)).sample(source(0), step=0)
    asked = [rollout.token_ids for rollout in rollouts]
    teacher = TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=4096)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        teacher.score(asked, "full")
        taken.append(time.perf_counter() - start)
    return sum(map(len, asked)) / statistics.median(taken[1:])


def main() -> None:
    """Measure with one rank and with two."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = {f"ranks_{n}": breakdown(n, Path(folder) / f"ranks-{n}") for n in (1, 2)}
        figures["scoring_tokens_per_second"] = scoring_tokens_per_second(Path(folder) / "ranks-1")
        figures["drafts"] = drafts.measure(str(Path(folder) / "ranks-1" / "student"))
    one, two = figures["ranks_1"], figures["ranks_2"]
    figures["divergence_from_hidden_states"] = hidden.measure()
    figures["attention"] = attention.measure()
    figures["packing"] = packing.measure()
    figures["generation"] = generation.measure()
    figures["episodes"] = episodes.measure()
    figures["teachers"] = teachers.measure()
    figures["sandbox"] = sandbox.measure()
    figures["ratios"] = {f"{name}_two_ranks_over_one": two[name] / one[name] for name in one}
    json.dump(figures, sys.stdout, indent=2)
    table = Table("", "1 rank", "2 ranks", "ratio", title="a step of the quickstart, medians")
    for name in one:
        table.add_row(name.replace("_", " "), f"{one[name]:.3g}", f"{two[name]:.3g}", f"{two[name] / one[name]:.2f}")
    table.add_row("scoring tokens per second, one teacher", f"{figures['scoring_tokens_per_second']:.3g}", "", "")
    ratios = figures["divergence_from_hidden_states"]
    beside = Table("", "full logits", "hidden states", "ratio", title=f"exact divergence, {hidden.SIZES}")
    for unit in ("extra_bytes", "seconds"):
        naive, ours = ratios[f"naive_{unit}"], ratios[f"hidden_{unit}"]
        beside.add_row(unit.replace("_", " "), f"{naive:.3g}", f"{ours:.3g}", f"{ours / naive:.3f}")
    verified = Table("", "alone", "beside hostile ones", title="verified in the sandbox in a second")
    for kind in [kind for kind in ("programs", "expressions", "programs_in_bubblewrap") if kind in figures["sandbox"]]:
        alone, crowded = figures["sandbox"][kind], figures["sandbox"][f"{kind}_beside_hostile_ones"]
        verified.add_row(kind.replace("_", " "), f"{alone:.3g}", f"{crowded:.3g}")
    print()
    Console().print(
        table,
        beside,
        attention.table(figures["attention"]),
        packing.table(figures["packing"]),
        *generation.tables(figures["generation"]),
        episodes.table(figures["episodes"]),
        verified,
        *teachers.tables(figures["teachers"]),
        *drafts.tables(figures["drafts"]),
    )


if __name__ == "__main__":
    main()

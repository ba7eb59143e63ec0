"""`mopd eval`: a checkpoint on the test prompts of any tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table

from mopd.distill.metrics.evaluate import evaluate, scores
from mopd.distill.recipe import DomainRecipe, EvaluateRecipe, RolloutRecipe
from mopd.recipes.evaluation.evaluator import verify
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.resolved import resolve_device
from mopd.rollouts.engines import ENGINES
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses
from mopd.rollouts.sampler import make_samplers, sampler_settings
from mopd.rollouts.tokenizer import completion_text


def evaluate_model(model: str, tasks: Sequence[str], prompts: int, *, trust_remote_code: bool = False) -> None:
    """Measure a checkpoint on the test prompts of tasks, greedily, and print their scores with 95% intervals.

    Args:
        tasks: names of shipped tasks, or ``./file.py:NAME`` of a user's own, which is shown as NAME.

    Raises:
        UserError: no shipped task has one of the names, or a user's own can't be used.
    """
    domains = {task.rpartition(":")[2]: DomainRecipe(task=task) for task in tasks}
    held_out_seed = EvaluateRecipe().seed
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    by_domain = tasks_of(domains, tokenizer)
    device = resolve_device("auto")
    with ExitStack() as closing:
        samplers = make_samplers(
            ENGINES["in_process"],
            settings=sampler_settings(RolloutRecipe(), tokenizer, model=model, seed=held_out_seed, support=None),
            frozen=SamplerProcesses(0, device, "bfloat16" if device == "cuda" else "float32"),
            closing=closing,
        )
        rows = evaluate(
            samplers.of(FrozenModel(model, trust_remote_code=trust_remote_code)),
            prompt_source(domains, by_domain, tokenizer, seed=held_out_seed).held_out(
                "test", prompts, seed=held_out_seed
            ),
            lambda asked, texts: verify(by_domain, asked, texts),
            lambda rollout: completion_text(tokenizer, rollout),
            0,
            model=model,
            split="test",
        )
    table = Table("task", "score", "95% interval", "prompts", title=model)
    for task, s in scores(rows).items():
        table.add_row(task, f"{100 * s.score:.1f}", f"{100 * s.low:.1f} to {100 * s.high:.1f}", str(s.n))
    Console().print(table)

"""Who writes the rollouts of a run: the student in its own ranks or in processes of its own, or its teachers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from mopd.distill.endpoint import Endpoint
from mopd.distill.recipe import Recipe
from mopd.distill.types import Sampler
from mopd.recipes.resolve.methods import decoding
from mopd.rollouts.engines.served import ServedSampler
from mopd.rollouts.engines.workers import FrozenSampler, PublishedSampler, SamplerWorkers
from mopd.rollouts.sampler import StudentSampler

if TYPE_CHECKING:
    from mopd.recipes.run.context import RunContext
    from mopd.recipes.run.job import Training


def student_sampler(job: Training, context: RunContext, closing: ExitStack) -> Sampler:
    """The sampler of the student's weights; its processes, if it has any, end with ``closing``."""
    recipe = job.resolved.recipe
    how = decoding(recipe, job.tokenizer)
    rollout, engine = recipe.rollout, recipe.student.engine
    if rollout.workers == 0:
        own = replace(how, lockstep=engine.expert_parallel > 1 or engine.zero_stage == 3)
        return StudentSampler(own, samples_per_prompt=rollout.samples_per_prompt, batch_size=rollout.batch_size)
    workers = SamplerWorkers(rollout.workers, device=context.device, dtype=job.resolved.dtype, gpus=context.gpus)
    closing.callback(workers.close)
    workers.load(job.model, trust_remote_code=recipe.student.trust_remote_code)
    return PublishedSampler(workers, how, samples_per_prompt=rollout.samples_per_prompt, batch_size=rollout.batch_size)


def teachers_writing(job: Training, context: RunContext, closing: ExitStack) -> Sampler:
    """The sampler of the teachers' frozen weights: a process for each, which answers the prompts of its domains."""
    recipe = job.resolved.recipe
    how, rollout = decoding(recipe, job.tokenizer), recipe.rollout
    writers: dict[str, StudentSampler] = {}
    for name, path in job.teachers.items():
        teacher = job.resolved.teachers[name]
        workers = SamplerWorkers(
            1,
            device=teacher.device,
            dtype=teacher.dtype,
            gpus=teacher.gpus,
            resources=teacher.settings.resources,
        )
        closing.callback(workers.close)
        workers.load(path, teacher.adapter, trust_remote_code=teacher.model.trusted)
        writers[name] = StudentSampler(
            how, samples_per_prompt=rollout.samples_per_prompt, batch_size=rollout.batch_size
        )
        writers[name].load_weights(workers, version=0)
    routes = {name: domain.teacher_weights for name, domain in recipe.trained_domains.items()}
    return FrozenSampler(writers, routes=routes)


def served_sampler(recipe: Recipe, endpoint: Endpoint, tokenizer: PreTrainedTokenizerBase) -> ServedSampler:
    """A teacher behind a server as a sampler, which answers greedily as everyone does."""
    how = decoding(recipe, tokenizer)
    return ServedSampler(
        endpoint,
        eos_token_id=how.eos_token_id,
        max_new_tokens=how.max_new_tokens,
        batch_size=recipe.rollout.batch_size,
        faults=recipe.faults,
    )

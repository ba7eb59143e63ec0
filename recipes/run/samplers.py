"""The samplers of a run: of its student, of frozen models that are measured, and of teachers that write rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from mopd.distill.metrics.teacher_distance import OVERLAP_K
from mopd.distill.payloads import Support
from mopd.distill.recipe import DomainRecipe, Engine, FaultRecipe, LoRA, RolloutRecipe
from mopd.distill.recipe.schema.domains import PrefixName
from mopd.distill.types import Sampler
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.engines import engine_of
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses, SamplerSettings, StudentModel
from mopd.rollouts.environments.prefixes import PrefixSampler
from mopd.rollouts.sampler import Episodes, MixedSampler, Samplers, TeacherSampler, make_samplers


def samplers_of_run(
    rollout: RolloutRecipe,
    engine: Engine,
    *,
    settings: SamplerSettings,
    initial: FrozenModel,
    lora: LoRA | None,
    device: str,
    dtype: str,
    gpus: float,
    faults: FaultRecipe,
    folder: str,
    say: Callable[[str], None],
    closing: ExitStack,
    heads: bool = False,
    episodes: Episodes | None = None,
) -> Samplers:
    """The samplers of a run or a stage.

    Args:
        engine: of the student, whose ranks may be what samples.
        settings: how rollouts to learn from are written.
        initial: the checkpoint that the student starts from.
        lora: the adapter that it trains over it, if any.
        dtype: of the student's weights, resolved.
        gpus: the part of a GPU that a process which holds a model takes.
        faults: after what time a process that does not answer is held to hang, and what is done then.
        folder: of the run or the stage, where logs go.
        say: to people.
        closing: ends every process that is started.
        heads: whether the student has draft heads.
        episodes: has samplers play the episodes of environments; None where there are none.
    """
    # On a CPU two processes measure twice as fast; GPUs are only those that the run needs anyway.
    measuring = max(2, engine.ranks) if device == "cpu" else engine.ranks
    limit = faults.rank_seconds
    return make_samplers(
        engine_of(rollout.engine, workers=rollout.workers).bound(rollout, faults=faults, folder=folder, say=say),
        settings=settings,
        student=StudentModel(
            initial,
            SamplerProcesses(rollout.workers, device, dtype, gpus, limit_seconds=limit),
            lockstep=engine.expert_parallel > 1,
            heads=heads,
            lora=lora,
        ),
        frozen=SamplerProcesses(measuring, device, dtype, gpus, limit_seconds=limit),
        measured_support=Support(OVERLAP_K, forced=()),
        closing=closing,
        episodes=episodes,
    )


def with_teachers_writing(sampler: Sampler, rollout: RolloutRecipe, writers: Callable[[], Sampler]) -> Sampler:
    """A method's sampler, with teachers in its place for the part of the prompts that the recipe gives them.

    Args:
        writers: makes the sampler of the teachers' frozen weights.
    """
    if rollout.off_policy == 0:
        return sampler
    return MixedSampler(sampler, writers(), part=rollout.off_policy, steps=rollout.off_policy_steps)


def with_prefixes(
    sampler: Sampler,
    trained: Mapping[str, DomainRecipe],
    players: Mapping[PrefixName, Callable[[], Sampler]],
    *,
    seed: int,
) -> Sampler:
    """A method's sampler, with episodes that others have begun in the domains that ask for them.

    Args:
        players: makes who plays them, by its name in `domains.D.prefix`.
        seed: the recipe's.
    """
    parts = {name: domain.prefix_parts for name, domain in trained.items() if domain.prefix_parts}
    named: dict[PrefixName, None] = dict.fromkeys(player for of_domain in parts.values() for player in of_domain)
    if not named:
        return sampler
    return PrefixSampler(sampler, {name: players[name]() for name in named}, parts=parts, seed=seed)


def frozen_teacher(teacher: ResolvedTeacher, folder: str) -> FrozenModel:
    """A teacher as a model that is sampled.

    Args:
        folder: its checkpoint, or the base of its adapter; of a served one, its configuration.
    """
    endpoint = teacher.kind.endpoint
    return FrozenModel(
        folder,
        teacher.adapter,
        trust_remote_code=teacher.model.trusted,
        endpoint=None if endpoint is None else endpoint(teacher.name, teacher.settings),
        faults=teacher.faults,
        attention=teacher.settings.attn_implementation,
    )


def teachers_writing(
    samplers: Samplers,
    teachers: Mapping[str, ResolvedTeacher],
    models: Mapping[str, FrozenModel],
    routes: Mapping[str, Mapping[str, float]],
    *,
    once: bool = False,
) -> Sampler:
    """The sampler of the teachers' frozen weights: a process for each, which answers the prompts of its domains.

    Args:
        models: the teachers' weights, by name.
        routes: for each domain its teachers with their weights, which sum to 1.
        once: whether they write one sample of each prompt, and not as many as the student.
    """
    writers: dict[str, Sampler] = {}
    for name, model in models.items():
        teacher = teachers[name]
        process = SamplerProcesses(
            1,
            teacher.device,
            teacher.dtype,
            teacher.gpus,
            teacher.settings.resources,
            limit_seconds=teacher.faults.rank_seconds,
        )
        writers[name] = samplers.writer(model, process, once=once)
    return TeacherSampler(writers, routes=routes)

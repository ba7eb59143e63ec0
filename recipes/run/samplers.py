"""The samplers of a run: of its student, of frozen models that are measured, and of teachers that write rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from mopd.distill.loss.topk import Support
from mopd.distill.metrics.teacher_distance import OVERLAP_K
from mopd.distill.recipe import Engine, RolloutRecipe
from mopd.distill.types import Sampler
from mopd.rollouts.engines import engine_of
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses, SamplerSettings, StudentModel
from mopd.rollouts.sampler import Samplers, TeacherSampler, make_samplers


def samplers_of_run(
    rollout: RolloutRecipe,
    engine: Engine,
    *,
    settings: SamplerSettings,
    initial: FrozenModel,
    device: str,
    dtype: str,
    gpus: float,
    closing: ExitStack,
) -> Samplers:
    """The samplers of a run or a stage.

    Args:
        engine: of the student, whose ranks may be what samples.
        settings: how rollouts to learn from are written.
        initial: the checkpoint that the student starts from.
        dtype: of the student's weights, resolved.
        gpus: GPUs that a process which holds a model takes.
        closing: ends every process that is started.
    """
    # On a CPU two processes measure twice as fast; GPUs are only those that the run needs anyway.
    measuring = max(2, engine.ranks) if device == "cpu" else engine.ranks
    return make_samplers(
        engine_of(rollout.engine, workers=rollout.workers),
        settings=settings,
        student=StudentModel(
            initial,
            SamplerProcesses(rollout.workers, device, dtype, gpus),
            lockstep=engine.expert_parallel > 1 or engine.zero_stage == 3,
        ),
        frozen=SamplerProcesses(measuring, device, dtype, gpus),
        measured_support=Support(OVERLAP_K, forced=()),
        closing=closing,
    )


def teachers_writing(
    samplers: Samplers,
    writers: Mapping[str, tuple[FrozenModel, SamplerProcesses]],
    routes: Mapping[str, Mapping[str, float]],
) -> Sampler:
    """The sampler of the teachers' frozen weights: processes for each, which answer the prompts of its domains.

    Args:
        writers: the teachers by name, each with its processes.
        routes: for each domain its teachers with their weights, which sum to 1.
    """
    return TeacherSampler(
        {name: samplers.writer(model, processes) for name, (model, processes) in writers.items()}, routes=routes
    )

"""vLLM writes: the row of ENGINES, bound to a recipe.

A rollout's seed follows from (seed, step, rollout), so most rollouts repeat; but logits depend on the batch that they
are computed in, so this engine is not ``keyed``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mopd.distill.recipe import FaultRecipe, LoRA, RolloutRecipe
from mopd.distill.types import Sampler, Weights
from mopd.rollouts.engines.agreement import fixed_rows
from mopd.rollouts.engines.base import (
    Decoding,
    FrozenModel,
    HoldCheckpoint,
    MakeSampler,
    RolloutEngine,
    SamplerProcesses,
    SamplerSettings,
    StudentModel,
    WeightTransport,
)
from mopd.rollouts.engines.in_process import StudentSampler
from mopd.rollouts.engines.vllm.files import mixture_on_cpu, transport_of, unheld_part
from mopd.rollouts.engines.vllm.pool import Here, Hosted, VLLMServers
from mopd.rollouts.engines.vllm.server import SPECULATION, HeldModel, ServerSpec, VLLMServer

FOLDER = "vllm"
"""In a run's folder: the servers' logs, and what was published to them."""
HOST_BYTES = 1.7 * 2**30
"""Of a vLLM process on a CPU with a tiny model: its libraries, and 1 GiB for keys and values."""


class _Student:
    """How the student's weights reach the servers, as one sampler wants them. Satisfies :class:`WeightTransport`.

    Args:
        tested: whether what is drawn was checked; a list that samplers of one student share, empty where not.
    """

    def __init__(
        self, servers: VLLMServers, decoding: Decoding, *, draws: int, vocabulary: int, tested: list[bool]
    ) -> None:
        self._servers, self._decoding, self._draws, self._tested = servers, decoding, draws, tested
        self._vocabulary = vocabulary

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """Have the servers hold ``weights``; before the first rollout, check what they draw.

        Raises:
            RunError: see :class:`VLLMServers`.
        """
        published = self._servers.publish(weights, version=version)
        if self._draws and not self._tested:
            self._servers.check_draws(weights, self._decoding, draws=self._draws, vocabulary=self._vocabulary)
            self._tested.append(True)
        return published


@dataclass(frozen=True, slots=True)
class _Bound:
    """The engine of a recipe.

    Attributes:
        rollout: its section, with that of vLLM in it.
        faults: what is done about servers that are lost.
        folder: the run's or a stage's, for logs; None: there is none.
        say: to people.
    """

    rollout: RolloutRecipe
    faults: FaultRecipe
    folder: str | None
    say: Callable[[str], None]

    def of_student(self, student: StudentModel, closing: ExitStack) -> MakeSampler:
        """Samplers that share servers, to which every loading of weights brings the student's."""
        servers = self._servers(student.processes, closing, count=student.processes.count)
        config = _config(student.initial)
        settings, processes, tested = self.rollout.vllm, student.processes, list[bool]()
        servers.transport = transport_of(settings.transport, config, lora=student.lora, device=processes.device)
        lora = student.lora if servers.transport == "adapter" else None
        context = settings.extra.get("max_model_len") or getattr(config.get_text_config(), CONTEXT, None)
        servers.rows = fixed_rows(config, context=context or 1 << 20)
        servers.hold(HeldModel(student.initial.path, student.initial.trust_remote_code, lora))
        ids = config.get_text_config().vocab_size

        def make(own: SamplerSettings) -> Sampler:
            known = min(ids, own.decoding.vocabulary or ids)
            transport = _Student(servers, own.decoding, draws=settings.test_draws, vocabulary=known, tested=tested)
            return _sampler(own, servers, transport)

        return make

    def of_checkpoints(
        self, processes: SamplerProcesses, settings: SamplerSettings, closing: ExitStack
    ) -> HoldCheckpoint:
        """Servers that hold one checkpoint after another: as many as sample the student, or fewer where fewer are
        wanted."""
        servers = self._servers(processes, closing, count=min(processes.count, max(1, self.rollout.workers)))
        sampler = _sampler(settings, servers, _Holding(servers))

        def hold(model: FrozenModel) -> Sampler:
            servers.hold(HeldModel(model.path, model.trust_remote_code))
            sampler.load_weights(servers, version=0)
            return sampler

        return hold

    def _servers(self, processes: SamplerProcesses, closing: ExitStack, *, count: int) -> VLLMServers:
        """Servers in hosts; where ``count`` is 0, one of this process."""
        python = os.path.abspath(self.rollout.vllm.python)  # as it is: a virtual environment's is a link
        logs = None if self.folder is None else str(Path(self.folder) / FOLDER)
        about: Any = (python, processes.device, processes.dtype, logs, processes.gpus, self.rollout.vllm.extra)
        servers = VLLMServers(
            [ServerSpec(number, *about) for number in range(count or 1)],
            faults=self.faults,
            limit_seconds=processes.limit_seconds,
            own=partial(Hosted, resources=processes.resources) if count else lambda spec: Here(VLLMServer(spec)),
            share=_share if count else lambda state: state,
            say=self.say,
        )
        closing.callback(servers.close)
        return servers


class _Holding:
    """Checkpoints come by their folders. Satisfies :class:`WeightTransport`."""

    def __init__(self, servers: VLLMServers) -> None:
        self._servers = servers

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """The servers, which hold a checkpoint already."""
        return self._servers


CONTEXT = "max_position_embeddings"


def _config(model: FrozenModel) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)


def _share(state: Any) -> Any:
    import ray

    return ray.put(state)


def _sampler(settings: SamplerSettings, servers: VLLMServers, transport: WeightTransport) -> StudentSampler:
    return StudentSampler(
        replace(settings.decoding, drafts=None),  # vLLM has no heads of ours
        samples_per_prompt=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        transport=transport,
        exam=settings.exam,
        complete=servers.complete,
    )


def lacking(rollout: RolloutRecipe) -> Iterator[str]:
    """What this machine has not that servers need, each a sentence."""
    python = rollout.vllm.python
    if "\0" in python or not os.access(python, os.X_OK) or os.path.isdir(python):
        yield (
            f"`rollout.vllm.python` is {python}, and no program is there; `make install-vllm` installs vLLM in "
            ".venv-vllm, or name the Python of another environment that has it"
        )


def refused(rollout: RolloutRecipe, config: Any, lora: LoRA | None, device: str) -> Iterator[str]:
    """What a recipe asks of vLLM that cannot work with a model, each a sentence.

    Args:
        config: of a model that is sampled.
        lora: the adapter that is trained over it; None: all of its weights change.
    """
    transport, family = rollout.vllm.transport, config.model_type
    if transport == "adapter" and lora is None:
        yield "`rollout.vllm.transport` is adapter, and `student.lora` is not set: no adapter is trained; take auto"
    elif transport == "adapter" and lora is not None and (part := unheld_part(lora)) is not None:
        yield (
            f"`rollout.vllm.transport` is adapter, and `student.lora.{part}` is set, which vLLM holds in no adapter; "
            "take auto"
        )
    if SPECULATION in rollout.vllm.extra:
        where = f"`rollout.vllm.extra` has `{SPECULATION}`, and"
        if device == "cpu":
            yield (
                f"{where} vLLM 0.32 for CPUs then draws from another distribution than its log-probabilities say; "
                "leave it out"
            )
        elif not rollout.vllm.test_draws:
            yield f"{where} `rollout.vllm.test_draws` is 0: nothing would show whether it draws rightly; set that"
    if mixture_on_cpu(config, device) and transport in ("reload", "adapter"):
        why = "a reload is silently wrong" if transport == "reload" else "vLLM does not start with adapters"
        yield (
            f"`rollout.vllm.transport` is {transport}, and the student is a {family} on the CPU, where {why}; take "
            "restart, or auto"
        )


def _bound(
    rollout: RolloutRecipe, faults: FaultRecipe, folder: str | None, say: Callable[[str], None]
) -> RolloutEngine:
    bound = _Bound(rollout, faults, folder, say)
    return replace(VLLM, of_student=bound.of_student, of_checkpoints=bound.of_checkpoints)


_UNBOUND = _Bound(RolloutRecipe(), FaultRecipe(), None, print)
VLLM = RolloutEngine(
    of_student=_UNBOUND.of_student,
    of_checkpoints=_UNBOUND.of_checkpoints,
    records_support=True,
    examines=True,
    section="vllm",
    needs_workers=True,
    workers_measure=True,
    asks_again=True,
    own_answers=True,
    host_bytes={"vLLM": HOST_BYTES},
    bind=_bound,
    lacking=lacking,
    refused=refused,
)

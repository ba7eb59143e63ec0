"""Sampler processes that hold weights of their own: published versions of the student, or frozen checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from mopd.distill.hosts import HOSTS, death
from mopd.distill.models.adapters import adapter_state, load_adapter_state, merged_state, with_trained_adapter
from mopd.distill.models.heads import without_adapters
from mopd.distill.models.mtp import DraftHeads, attach, attached, count_heads, draft_heads, is_head_tensor
from mopd.distill.recipe import LoRA
from mopd.distill.types import RunError, Sampler, Weights
from mopd.rollouts.engines.base import (
    FrozenModel,
    HoldCheckpoint,
    MakeSampler,
    RolloutEngine,
    SamplerProcesses,
    SamplerSettings,
    StudentModel,
)
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.in_process import StudentSampler, loaded


class SamplerWorker:
    """Lives in a host (:class:`distill.hosts.Host`): one module, one thread."""

    def __init__(self, device: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.device, self.dtype = device, dtype
        self.model: torch.nn.Module | None = None
        self.version: int | None = None

    def load(self, model: FrozenModel, lora: LoRA | None = None, heads: bool = False) -> None:
        """Hold a checkpoint, with its adapter added into its weights, or one beside them that changes; with its draft
        ``heads``."""
        self.model = loaded(model, device=self.device, dtype=self.dtype)
        if heads:
            attached(model.path, self.model)
        if lora is not None:
            self.model = with_trained_adapter(self.model, lora, base=model.path).eval()

    def publish(self, state: Mapping[str, tuple[torch.dtype, np.ndarray]], version: int, adapter: bool = False) -> int:
        """Take on ``state``, which must name every weight of the module, or of its adapter; answers with the version
        now held."""
        assert self.model is not None
        config: Any = without_adapters(self.model).config.get_text_config()
        tensors = {name: as_tensor(dtype, array) for name, (dtype, array) in state.items()}
        of_heads = {name: tensors.pop(name) for name in list(tensors) if is_head_tensor(name, config)}
        if adapter:
            load_adapter_state(self.model, tensors)
        else:
            self.model.load_state_dict(tensors, strict=True)
        if of_heads:
            heads = draft_heads(self.model) or DraftHeads(self.model, count_heads(of_heads, config))
            heads.load(of_heads, named=f"of step {version}")
            parameter = next(self.model.parameters())
            attach(self.model, heads.to(device=parameter.device, dtype=parameter.dtype).eval())
        self.version = version
        return version

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What a function answers to the module and further arguments."""
        return fn(self.model, *args)


class SamplerWorkers:
    """A set of sampler processes, all with the same weights, which reach them through Ray's object store.

    Satisfies :class:`distill.types.Weights` and :class:`rollouts.engines.base.WeightTransport`.
    """

    def __init__(self, processes: SamplerProcesses, *, heads: bool = False) -> None:
        """``heads``: a checkpoint's draft heads are held beside its model."""
        self._heads = heads
        self._limit_seconds = processes.limit_seconds
        self._lora: LoRA | None = None
        self._reusable = processes.device == "cpu" and not processes.gpus and not processes.resources
        self._hosts = [HOSTS.take(gpus=processes.gpus, resources=processes.resources) for _ in range(processes.count)]
        for host in self._hosts:
            host.hold.remote(SamplerWorker, (processes.device, processes.dtype))  # who fails says so when it is asked

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return len(self._hosts)

    def load(self, model: FrozenModel, lora: LoRA | None = None) -> None:
        """Hold a checkpoint on every worker, with its adapter, if any, added into its weights.

        Args:
            lora: of a student that trains an adapter over it: that alone is published.
        """
        self._reusable = self._reusable and not model.trust_remote_code
        self._lora = lora
        self._ask("load", [(model, lora, self._heads)] * self.ranks)

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """Copy ``weights`` to every worker, each in its own dtype, under their version; the workers hold them then.

        Of a student that trains an adapter, that alone is copied.

        Raises:
            RunError: a worker died, hangs, or holds another version afterwards.
        """
        import ray

        adapter = self._lora is not None
        tensors = weights.adapter_state() if adapter else weights.state_dict()
        state = ray.put({name: as_array(tensor) for name, tensor in tensors.items()})
        held = self._ask("publish", [(version, adapter)] * self.ranks, state)
        if held != [version] * self.ranks:
            raise RunError(f"sampler workers hold versions {held} after publishing version {version}")
        return self

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``fn(module, *args)`` on every worker with its own arguments."""
        return self._ask("call", [(fn, args) for args in per_rank])

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The weights that the workers hold."""
        return self.on_ranks(_state_dict, [()] * self.ranks)[0]

    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """The weights of the adapter that the workers hold beside a student's base."""
        return self.on_ranks(adapter_state, [()] * self.ranks)[0]

    def close(self) -> None:
        """End the processes, or keep them for who needs some next."""

        for host in self._hosts:
            HOSTS.give_back(host, reusable=self._reusable)
        self._hosts = []

    def _ask(self, method: str, per_worker: Sequence[tuple[Any, ...]], *stored: Any) -> list[Any]:
        """The answers of all, each to arguments of its own and to what all find in Ray's store."""
        import ray
        import ray.exceptions

        pairs = zip(self._hosts, per_worker, strict=True)
        sound, self._reusable = self._reusable, False
        try:
            answers = ray.get([h.ask.remote(method, a, *stored) for h, a in pairs], timeout=self._limit_seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(
                f"a sampler worker hangs: it did not answer within {self._limit_seconds:g} s, which is "
                "`faults.rank_seconds`. The last checkpoint resumes the run; raise the limit if it was only slow"
            ) from error
        except ray.exceptions.RayActorError as error:
            raise RunError(f"a sampler worker died: {death(error)}. The last checkpoint resumes the run.") from error
        except ray.exceptions.RayError as error:
            raise RunError(f"a sampler worker failed: {error}. The last checkpoint resumes the run.") from error
        self._reusable = sound
        return answers


def _state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    if hasattr(model, "peft_config"):
        return merged_state(model)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def as_array(tensor: torch.Tensor) -> tuple[torch.dtype, np.ndarray]:
    """A tensor as Ray ships it without a copy; numpy has no bfloat16, whose bits go as integers."""
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return tensor.dtype, bits.numpy()


def as_tensor(dtype: torch.dtype, array: np.ndarray) -> torch.Tensor:
    """The inverse of :func:`as_array`."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def of_student(student: StudentModel, closing: ExitStack) -> MakeSampler:
    """Samplers in processes of their own, to which every loading of weights copies the student's."""
    workers = SamplerWorkers(student.processes, heads=student.heads)
    closing.callback(workers.close)
    workers.load(student.initial, student.lora)

    def make(settings: SamplerSettings) -> Sampler:
        return StudentSampler(
            settings.decoding,
            samples_per_prompt=settings.samples_per_prompt,
            batch_size=settings.batch_size,
            transport=workers,
            exam=settings.exam,
        )

    return make


def of_checkpoints(processes: SamplerProcesses, settings: SamplerSettings, closing: ExitStack) -> HoldCheckpoint:
    """Processes that hold one checkpoint after another."""
    workers = SamplerWorkers(processes, heads=settings.decoding.drafts is not None)
    closing.callback(workers.close)
    sampler = StudentSampler(
        settings.decoding,
        samples_per_prompt=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        exam=settings.exam,
    )

    def hold(model: FrozenModel) -> Sampler:
        workers.load(model)
        sampler.load_weights(workers, version=0)
        return sampler

    return hold


WORKERS = RolloutEngine(
    of_student=of_student,
    of_checkpoints=of_checkpoints,
    keyed=True,
    records_support=True,
    takes_adapters=True,
    speculates=True,
    canary=check_sampler,
    examines=True,
)

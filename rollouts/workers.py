"""Sampler processes that hold weights of their own: frozen checkpoints, or published versions of the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
import torch

from distill.load import load_model
from distill.types import Weights, WorldError
from rollouts.sampler import StudentSampler


class _Worker:
    """Lives in the actor: one module, one thread."""

    def __init__(self, device: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.device, self.dtype = device, dtype
        self.model: torch.nn.Module | None = None
        self.version: int | None = None

    def load(self, path: str, adapter: str | None, trust_remote_code: bool) -> None:
        """Hold the checkpoint at ``path``, with an adapter added into its weights."""
        self.model = load_model(
            path, device=self.device, dtype=self.dtype, adapter=adapter, trust_remote_code=trust_remote_code
        )

    def publish(self, state: Mapping[str, Any], version: int) -> int:
        """Take on ``state``, which must name every weight of the module; answers with the version now held."""
        assert self.model is not None
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        self.model.load_state_dict(tensors, strict=True)
        self.version = version
        return version

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return fn(self.model, *args)


class SamplerWorkers:
    """A set of sampler processes, all with the same weights. Satisfies :class:`distill.types.Weights`."""

    def __init__(self, workers: int, *, device: str, dtype: str, gpus: float = 0.0) -> None:
        make = ray.remote(_Worker).options(num_cpus=0, num_gpus=gpus)
        self._actors: list[Any] = [make.remote(device, dtype) for _ in range(workers)]

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return len(self._actors)

    def load(self, path: str, adapter: str | None = None, *, trust_remote_code: bool = False) -> None:
        """Hold the checkpoint at ``path`` on every worker, with the given adapter added into its weights."""
        self._all([actor.load.remote(path, adapter, trust_remote_code) for actor in self._actors])

    def publish(self, weights: Weights, *, version: int) -> None:
        """Copy ``weights`` to every worker, under their version.

        Raises:
            WorldError: a worker died, or holds another version afterwards.
        """
        state = ray.put({name: tensor.float().numpy() for name, tensor in weights.state_dict().items()})
        held = self._all([actor.publish.remote(state, version) for actor in self._actors])
        if held != [version] * len(self._actors):
            raise WorldError(f"sampler workers hold versions {held} after publishing version {version}")

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``fn(module, *args)`` on every worker with its own arguments."""
        return self._all([a.call.remote(fn, args) for a, args in zip(self._actors, per_rank, strict=True)])

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The weights that the workers hold."""
        return self.on_ranks(_state_dict, [()] * self.ranks)[0]

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _all(self, references: list[Any]) -> list[Any]:
        try:
            return ray.get(references)
        except ray.exceptions.RayError as error:
            raise WorldError(f"a sampler worker failed: {error}. The last checkpoint resumes the run.") from error


def _state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


class PublishedSampler(StudentSampler):
    """A student's sampler in processes of its own: loading weights copies them to the workers, versioned."""

    def __init__(self, workers: SamplerWorkers, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._workers = workers

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Publish ``weights`` to the workers under ``version`` and sample from them."""
        self._workers.publish(weights, version=version)
        super().load_weights(self._workers, version=version)

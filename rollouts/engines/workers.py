"""Sampler processes that hold weights of their own: frozen checkpoints, or published versions of the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from typing import Any

import ray
import ray.exceptions
import torch

from mopd.distill.models.load import load_model
from mopd.distill.types import Prompt, Rollout, RunError, Weights
from mopd.rollouts.sampler import StudentSampler


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

    def __init__(
        self,
        workers: int,
        *,
        device: str,
        dtype: str,
        gpus: float = 0.0,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        make = ray.remote(_Worker).options(num_cpus=0, num_gpus=gpus, resources=dict(resources or {}))
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
            RunError: a worker died, or holds another version afterwards.
        """
        state = ray.put({name: tensor.float().numpy() for name, tensor in weights.state_dict().items()})
        held = self._all([actor.publish.remote(state, version) for actor in self._actors])
        if held != [version] * len(self._actors):
            raise RunError(f"sampler workers hold versions {held} after publishing version {version}")

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
            raise RunError(f"a sampler worker failed: {error}. The last checkpoint resumes the run.") from error


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


class FrozenSampler:
    """Teachers write: every prompt is answered by one of its domain's, whose weights never move; off-policy.

    Args:
        writers: samplers of the teachers' weights by name.
        routes: for each domain its teachers with their weights, which sum to 1: the parts of its prompts that they get.
    """

    def __init__(self, writers: Mapping[str, StudentSampler], *, routes: Mapping[str, Mapping[str, float]]) -> None:
        self._writers, self._routes = dict(writers), routes
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Note the version that rollouts carry; what is written depends on no weights of the student."""
        self._version = version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield one microbatch with what the teachers write, in the order of ``prompts``; they write side by side."""
        places = {name: [i for i, mine in enumerate(self._assigned(prompts)) if mine == name] for name in self._writers}

        def write(name: str) -> list[Rollout]:
            mine = self._writers[name].sample([prompts[i] for i in places[name]], step=step, greedy=greedy)
            return [rollout for microbatch in mine for rollout in microbatch]

        with ThreadPoolExecutor(len(self._writers), thread_name_prefix="writer") as threads:
            written = dict(zip(self._writers, threads.map(write, self._writers), strict=True))
        # A writer numbers its own prompts from 0.
        placed = [(places[name][rollout.group], rollout) for name in self._writers for rollout in written[name]]
        placed.sort(key=lambda one: one[0])
        yield [
            replace(rollout, group=group, index=index, version=self._version)
            for index, (group, rollout) in enumerate(placed)
        ]

    def _assigned(self, prompts: Sequence[Prompt]) -> list[str]:
        """Who answers each prompt: a domain's prompts are cut, in their order, in the proportions of its route."""
        counts = {domain: sum(prompt.domain == domain for prompt in prompts) for domain in self._routes}
        seen = dict.fromkeys(self._routes, 0)
        assigned: list[str] = []
        for prompt in prompts:
            names, parts = zip(*self._routes[prompt.domain].items(), strict=True)
            middle = (seen[prompt.domain] + 0.5) / counts[prompt.domain]
            seen[prompt.domain] += 1
            ends = list(accumulate(parts))
            assigned.append(next((name for name, end in zip(names, ends, strict=True) if middle <= end), names[-1]))
        return assigned

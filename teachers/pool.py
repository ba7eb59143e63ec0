"""The teachers of a run, each in a Ray actor of its own, routed by name through the rollout's domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.exceptions

from distill.topk import Support
from distill.types import (
    Float32,
    Full,
    Int32,
    NonFinite,
    Payload,
    PayloadName,
    Rollout,
    Sampled,
    ScoredRollout,
    TeacherScore,
    TopK,
    WorldError,
)
from teachers.model import TeacherModel


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """What a teacher's actor needs: see :class:`teachers.model.TeacherModel`."""

    path: str
    device: str
    dtype: str
    temperature: float
    microbatch_tokens: int
    gpus: float
    support: Support | None = None


class _Host:
    """Lives in the actor: one model, one thread."""

    def __init__(self, spec: TeacherSpec, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = TeacherModel(
            spec.path,
            device=spec.device,
            dtype=spec.dtype,
            temperature=spec.temperature,
            microbatch_tokens=spec.microbatch_tokens,
            support=spec.support,
        )

    def ready(self) -> int:
        """The size of the output head's vocabulary; answering means that the weights are loaded."""
        return int(self.model.model.config.get_text_config().vocab_size)

    def score(self, token_ids: Sequence[Int32], payload: PayloadName) -> list[Payload]:
        return self.model.score(token_ids, payload)


class TeacherPool:
    """A grader: every rollout goes to its domain's teachers, all teachers score at the same time.

    Args:
        specs: teachers by name.
        routes: for each domain its teachers with their weights, which sum to 1.
        payload: what the loss needs of each teacher.
    """

    def __init__(
        self, specs: Mapping[str, TeacherSpec], *, routes: Mapping[str, Mapping[str, float]], payload: PayloadName
    ) -> None:
        self._routes = {domain: dict(weights) for domain, weights in routes.items()}
        self._payload: PayloadName = payload
        self.scored_tokens = dict.fromkeys(specs, 0)
        self._actors: dict[str, Any] = {
            name: ray.remote(_Host).options(num_cpus=0, num_gpus=spec.gpus, max_concurrency=1).remote(spec, 1)
            for name, spec in specs.items()
        }

    def wait_until_ready(self) -> dict[str, int]:
        """Wait until every teacher has loaded; returns the size of each one's output vocabulary.

        Raises:
            WorldError: a teacher's process died or could not load its checkpoint.
        """
        return {name: self._get(name, actor.ready.remote()) for name, actor in self._actors.items()}

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Score rollouts as they come; the work of a microbatch is handed out before the next one is asked for.

        Raises:
            KeyError: a rollout's domain has no route.
            NonFinite: a teacher answered NaN or +-infinity at a trained token; names teacher, domain and rollout.
            WorldError: a teacher died, or answered for other tokens than it was asked.
        """
        rollouts: list[Rollout] = []
        pending: list[tuple[str, list[int], Any]] = []
        for microbatch in microbatches:
            first = len(rollouts)
            rollouts.extend(microbatch)
            asked: dict[str, list[int]] = {}
            for position in range(first, len(rollouts)):
                for teacher in self._routes[rollouts[position].domain]:
                    asked.setdefault(teacher, []).append(position)
            for teacher, positions in asked.items():
                tokens = [rollouts[i].token_ids for i in positions]
                pending.append((teacher, positions, self._actors[teacher].score.remote(tokens, self._payload)))
        answers: dict[tuple[int, str], Payload] = {}
        for teacher, positions, reference in pending:
            for i, payload in zip(positions, self._get(teacher, reference), strict=True):
                check_score(teacher, rollouts[i], payload)
                answers[i, teacher] = payload
                self.scored_tokens[teacher] += len(rollouts[i].token_ids)
        return [
            ScoredRollout(
                rollout,
                tuple((w, TeacherScore(t, answers[i, t])) for t, w in self._routes[rollout.domain].items()),
            )
            for i, rollout in enumerate(rollouts)
        ]

    def close(self) -> None:
        """End the teachers' processes."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _get(self, teacher: str, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            raise WorldError(f"teacher {teacher!r} failed: {error}. The last checkpoint resumes the run.") from error


def check_score(teacher: str, rollout: Rollout, payload: Payload) -> None:
    """Refuse a score that would poison the update.

    Raises:
        NonFinite: at a trained token, the sampled token's log-probability or a whole row is NaN or infinite.
        WorldError: it has another number of rows than the rollout has tokens.
    """
    if isinstance(payload, Full):
        values: Float32 = payload.logprobs_TV
    elif isinstance(payload, Sampled):
        values = payload.logprobs_T
    elif isinstance(payload, TopK):
        values = payload.logprobs_TK
    else:
        raise WorldError(f"teacher {teacher!r} answered with {type(payload).__name__}, which was not asked for")
    if len(values) != len(rollout.token_ids):
        raise WorldError(
            f"teacher {teacher!r} scored {len(values)} positions of rollout {rollout.index} (domain "
            f"{rollout.domain!r}), which has {len(rollout.token_ids)} tokens"
        )
    bad = ~np.isfinite(values[rollout.loss_mask])
    bad = bad.any(axis=1) if bad.ndim == 2 else bad
    if isinstance(payload, TopK):
        sampled, rest = payload.sampled_T[rollout.loss_mask], payload.rest_T[rollout.loss_mask]
        bad = bad | ~np.isfinite(sampled) | ~(rest < np.inf)  # -inf is sound: nothing is outside of the support
    if bad.any():
        raise NonFinite(
            f"teacher {teacher!r} gave NaN or infinity at {int(bad.sum())} of {rollout.trained_tokens} tokens of "
            f"rollout {rollout.index} (domain {rollout.domain!r}, step {rollout.version + 1}, prompt "
            f"{rollout.prompt.id}); the weights have not moved, the last checkpoint resumes the run"
        )

"""What a step spends: tokens, FLOPs and bytes of generation, of each teacher and of the update, for metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.flops import ModelCost, model_cost
from mopd.distill.payloads import payload_bytes
from mopd.distill.types import History, Metrics, Rollout, ScoredRollout


def cost_of(path: str, *, trust_remote_code: bool = False) -> ModelCost:
    """The cost of a checkpoint's architecture; no weight is loaded."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return model_cost(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


@dataclass(slots=True)
class Costs:
    """Counts what steps spend.

    Attributes:
        student: path of the student's checkpoint.
        teachers: paths of the teachers' by name.
        writes: whether models write the rollouts; gold answers cost nothing to write.
        trusted: leaves of the models whose own code may run; see :func:`recipes.resolve.sources.trusted`.
    """

    student: str
    teachers: Mapping[str, str]
    writes: bool
    trusted: frozenset[str] = frozenset()
    _student: ModelCost = field(init=False)
    _teachers: dict[str, ModelCost] = field(init=False)

    def __post_init__(self) -> None:
        self._student = cost_of(self.student, trust_remote_code="student.model" in self.trusted)
        self._teachers = {
            name: cost_of(path, trust_remote_code=f"teachers.{name}.model" in self.trusted)
            for name, path in self.teachers.items()
        }

    def of_step(self, batch: Sequence[ScoredRollout]) -> Metrics:
        """Tokens, FLOPs and bytes by role of a step that trained on ``batch``; see :data:`ROLES` of the ledger."""
        kept = [scored.rollout for scored in batch if scored.kept]
        metrics: Metrics = {
            "tokens/update": float(sum(rollout.trained_tokens for rollout in kept)),
            "flops/update": float(self._student.train([len(rollout.token_ids) for rollout in kept])),
        }
        if self.writes:
            metrics["tokens/generation"] = float(sum(scored.rollout.trained_tokens for scored in batch))
            metrics["flops/generation"] = self._generation([scored.rollout for scored in batch])
        scored_by: dict[str, list[int]] = {name: [] for name in self._teachers}
        shipped = dict.fromkeys(self._teachers, 0)
        for scored in batch:
            for _, score in scored.scores:
                scored_by[score.teacher].append(len(scored.rollout.token_ids))
                shipped[score.teacher] += payload_bytes(score.payload)
        for name, lengths in scored_by.items():
            metrics[f"tokens/teacher/{name}"] = float(sum(lengths))
            metrics[f"bytes/teacher/{name}"] = float(shipped[name])
            metrics[f"flops/teacher/{name}"] = float(self._teachers[name].forward(lengths))
        return metrics

    def of_unused(self, rollouts: Sequence[Rollout]) -> Metrics:
        """How many rollouts were written that nobody learnt from, and what that took."""
        return {
            "rollouts": float(len(rollouts)),
            "tokens/generation": float(sum(rollout.trained_tokens for rollout in rollouts)),
            "flops/generation": self._generation(rollouts),
        }

    def _generation(self, rollouts: Sequence[Rollout]) -> float:
        """What the writers of rollouts spent on them: the student, or the teacher that one names; and who played the
        episodes that the student went on with, once for all samples of a prompt."""
        lengths: dict[str | None, list[int]] = {}
        played: dict[int, History] = {}
        for rollout in rollouts:
            lengths.setdefault(rollout.writer, []).append(len(rollout.token_ids))
            if rollout.history is not None and rollout.history.writer is not None:
                played[rollout.group] = rollout.history
        for history in played.values():
            lengths.setdefault(history.writer, []).append(history.tokens)
        return sum(
            float((self._student if writer is None else self._teachers[writer]).generate(each))
            for writer, each in lengths.items()
        )

    def of_forward(self, lengths: Sequence[int]) -> float:
        """FLOPs of a forward of the student over sequences of these lengths."""
        return float(self._student.forward(lengths))

    def of_evaluation(self, model: str, lengths: Sequence[int], *, written: int, seconds: float) -> dict[str, float]:
        """What ``base``, ``student`` or ``teachers/NAME`` spent on answers of these lengths, prompts included."""
        cost = self._teachers.get(model.removeprefix("teachers/"), self._student)
        return {"tokens": float(written), "flops": float(cost.generate(lengths)), "seconds": round(seconds, 3)}

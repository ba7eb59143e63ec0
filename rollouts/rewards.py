"""The verifiers as a grader: the reward of a rollout is its task's verdict on what the policy wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from distill.types import Metrics, Rollout, ScoredRollout, UserError, WorldError
from rollouts.tasks.base import Task
from rollouts.tokenizer import completion_text


class RewardGrader:
    """Grades rollouts by the task of their domain; all rollouts of a domain are verified in one batch.

    Args:
        tasks: by domain.
        tokenizer: the policy's; it turns a rollout's own tokens into text, without the closing EOS.
    """

    def __init__(self, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tasks, self._tokenizer = tasks, tokenizer

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Every rollout with its reward in 0..1, in the order in which they come.

        Raises:
            UserError: a rollout's domain has no task.
            WorldError: a verifier returned too few or too many scores, or one that is not in 0..1.
        """
        rollouts = [rollout for microbatch in microbatches for rollout in microbatch]
        rewards: dict[int, float] = {}
        for domain in dict.fromkeys(rollout.domain for rollout in rollouts):
            places = [place for place, rollout in enumerate(rollouts) if rollout.domain == domain]
            rewards.update(zip(places, self._verify(domain, [rollouts[p] for p in places]), strict=True))
        return [ScoredRollout(rollout, reward=rewards[place]) for place, rollout in enumerate(rollouts)]

    def metrics(self) -> Metrics:
        """None: the loop itself waits for verifiers, and counts that."""
        return {}

    def _verify(self, domain: str, rollouts: Sequence[Rollout]) -> list[float]:
        if domain not in self._tasks:
            raise UserError(
                f"domain {domain!r} is graded by reward and has no task; tasks are known for "
                f"{', '.join(self._tasks) or 'no domain'}; give it a task with a verifier"
            )
        rewards = self._tasks[domain].verify_many(
            [r.prompt for r in rollouts], [completion_text(self._tokenizer, r) for r in rollouts]
        )
        if len(rewards) != len(rollouts):
            raise WorldError(f"the verifier of {domain!r} returned {len(rewards)} scores for {len(rollouts)} rollouts")
        for rollout, reward in zip(rollouts, rewards, strict=True):
            if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
                raise WorldError(f"the verifier of {domain!r} scored {rollout.prompt.id} {reward}, not 0..1")
        return [float(reward) for reward in rewards]

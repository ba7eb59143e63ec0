"""The verifiers as a grader: the reward of a rollout is its task's verdict on what the policy wrote."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import Metrics, Rollout, RunError, ScoredRollout, UserError
from mopd.rollouts.tasks.base import Task
from mopd.rollouts.tokenizer import completion_text


class RewardGrader:
    """Grades rollouts by the task of their domain; all rollouts of a domain are verified in one batch.

    Args:
        tasks: by domain.
        tokenizer: the policy's; it turns a rollout's own tokens into text, without the closing EOS.
    """

    def __init__(self, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tasks, self._tokenizer = tasks, tokenizer
        self._metrics: Metrics = {}

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Every rollout with its reward in 0..1, in the order in which they come.

        Raises:
            UserError: a rollout's domain has no task.
            RunError: a verifier returned too few or too many scores, or one that is not in 0..1.
        """
        rollouts = [rollout for microbatch in microbatches for rollout in microbatch]
        rewards: dict[int, float] = {}
        for domain in dict.fromkeys(rollout.domain for rollout in rollouts):
            places = [place for place, rollout in enumerate(rollouts) if rollout.domain == domain]
            scored = self._verify(domain, [rollouts[p] for p in places])
            rewards.update(zip(places, scored, strict=True))
            self._metrics[f"reward/{domain}"] = fmean(scored)
        return [ScoredRollout(rollout, reward=rewards[place]) for place, rollout in enumerate(rollouts)]

    def metrics(self) -> Metrics:
        """By domain, the mean reward of what was scored last, 0..1. The loop itself waits, and counts that."""
        metrics, self._metrics = self._metrics, {}
        return metrics

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
            raise RunError(f"the verifier of {domain!r} returned {len(rewards)} scores for {len(rollouts)} rollouts")
        for rollout, reward in zip(rollouts, rewards, strict=True):
            if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
                raise RunError(f"the verifier of {domain!r} scored {rollout.prompt.id} {reward}, not 0..1")
        return [float(reward) for reward in rewards]


class VerifiedGrader:
    """Keeps what the verifiers find wholly right, and leaves the rest out: the selection of expert iteration.

    Args:
        rewards: grades the rollouts.
        most: different right answers to one prompt that are kept at most, in the order in which they were written, so
            that easy prompts don't outweigh hard ones.

    Source: expert iteration, Anthony et al., arXiv 1705.08439; with verified samples of a language model's own as in
    ReST-EM, Singh et al., arXiv 2312.06585, section 3.
    """

    def __init__(self, rewards: RewardGrader, *, most: int) -> None:
        self._rewards, self._most = rewards, most
        self._metrics: Metrics = {}

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Every rollout with its reward, in the order in which they come, and whether it is kept."""
        answers: dict[int, set[bytes]] = defaultdict(set)
        kept: dict[str, list[float]] = defaultdict(list)
        selected: list[ScoredRollout] = []
        for scored in self._rewards.score(microbatches):
            rollout = scored.rollout
            kept_answers, answer = answers[rollout.group], rollout.token_ids.tobytes()
            keep = scored.reward == 1.0 and answer not in kept_answers and len(kept_answers) < self._most
            if keep:
                kept_answers.add(answer)
            kept[rollout.domain].append(float(keep))
            selected.append(replace(scored, kept=keep))
        self._metrics = {f"kept/{domain}": fmean(values) for domain, values in kept.items()}
        return selected

    def metrics(self) -> Metrics:
        """By domain, the mean reward and the part of the rollouts that was kept, 0..1."""
        metrics, self._metrics = self._metrics, {}
        return self._rewards.metrics() | metrics

"""The verifiers as a grader: the reward of a rollout is its task's verdict on what the policy wrote."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe.schema.rollout import Truncated
from mopd.distill.types import Grader, Metrics, Rollout, RunError, ScoredRollout, UserError
from mopd.distill.verdicts import unjudged_counts
from mopd.rollouts.tasks.base import Task
from mopd.rollouts.tokenizer import completion_text


class RewardGrader:
    """Grades rollouts by the task of their domain; all rollouts of a domain are verified in one batch.

    Args:
        tasks: by domain.
        tokenizer: the policy's; it turns a rollout's own tokens into text, without the closing EOS.
        truncated: see `rollout.truncated`; with ``zero_reward`` a rollout that was cut at the limit earns nothing.
    """

    def __init__(self, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase, *, truncated: Truncated) -> None:
        self._tasks, self._tokenizer, self._truncated = tasks, tokenizer, truncated
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
            rewards.update(zip(places, map(float, scored), strict=True))
            self._metrics[f"reward/{domain}"] = fmean(scored)
            self._metrics |= unjudged_counts(scored, domain)
        return [ScoredRollout(rollout, reward=rewards[place]) for place, rollout in enumerate(rollouts)]

    def metrics(self) -> Metrics:
        """Of what was scored last, by domain: the mean reward, 0..1, and answers that no verifier looked at.

        The loop itself waits, and counts that.
        """
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _verify(self, domain: str, rollouts: Sequence[Rollout]) -> list[float]:
        if domain not in self._tasks:
            raise UserError(
                f"domain {domain!r} is graded by reward and has no task; tasks are known for "
                f"{', '.join(self._tasks) or 'no domain'}; give it a task with a verifier"
            )
        asked = [rollout for rollout in rollouts if rollout.episode is None]
        verdicts = self._tasks[domain].verify_many(
            [r.prompt for r in asked], [completion_text(self._tokenizer, r) for r in asked]
        )
        if len(verdicts) != len(asked):
            raise RunError(f"the verifier of {domain!r} returned {len(verdicts)} scores for {len(asked)} rollouts")
        of_text = iter(verdicts)
        rewards = [next(of_text) if r.episode is None else r.episode.reward for r in rollouts]
        for rollout, reward in zip(rollouts, rewards, strict=True):
            if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
                raise RunError(f"the verifier of {domain!r} scored {rollout.prompt.id} {reward}, not 0..1")
        if self._truncated != "zero_reward":
            return rewards
        return [
            0.0 if rollout.finish == "length" else reward for rollout, reward in zip(rollouts, rewards, strict=True)
        ]


class TruncatedRollouts:
    """Counts the rollouts that were cut at the limit, and leaves them out of what is learnt from where so asked.

    Args:
        grader: grades all of them.
        policy: `rollout.truncated`; ``mask`` leaves them out. Their rewards stay in the mean of their group.

    Source: masking is the overlong filtering of DAPO, Yu et al., arXiv 2503.14476, section 3.4.
    """

    def __init__(self, grader: Grader, *, policy: Truncated) -> None:
        self._grader, self._policy = grader, policy
        self._metrics: Metrics = {}

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """What the grader gives, in its order."""
        batch = self._grader.score(microbatches)
        cut: dict[str, list[float]] = defaultdict(list)
        for scored in batch:
            cut[scored.rollout.domain].append(float(scored.rollout.finish == "length"))
        self._metrics = {f"truncated/{domain}": fmean(each) for domain, each in cut.items()}
        if self._policy != "mask":
            return batch
        return [replace(scored, kept=scored.kept and scored.rollout.finish != "length") for scored in batch]

    def metrics(self) -> Metrics:
        """The grader's, and by domain the part of the rollouts that was cut, 0..1."""
        metrics, self._metrics = self._metrics, {}
        return self._grader.metrics() | metrics


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

"""Methods: who acts, who grades, and which losses fit. A method is a row here, not a flag in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import LOSSES, bind
from mopd.distill.payloads import Support
from mopd.distill.recipe import Recipe
from mopd.distill.types import Grader, Metrics, Rollout, Sampler, ScoredRollout
from mopd.rollouts.engines.in_process import Decoding
from mopd.rollouts.rewards import RewardGrader, VerifiedGrader
from mopd.rollouts.sampler import GoldSampler
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import completion_ids, control_ids


@dataclass(frozen=True, slots=True)
class Parts:
    """What a method's parts are made of.

    Attributes:
        recipe: the run's.
        tokenizer: the student's.
        tasks: by domain.
        student_sampler: makes the sampler of the student's weights; called by methods that act with it.
        teachers: makes the teacher pool; called by methods that grade with it.
        writers: makes the sampler of the teachers' frozen weights; called by methods that learn from what they write.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    tasks: Mapping[str, Task]
    student_sampler: Callable[[], Sampler]
    teachers: Callable[[], Grader]
    writers: Callable[[], Sampler]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of :data:`METHODS`.

    Attributes:
        actor: makes the sampler.
        graders: makes the grader.
        losses: the estimators of ``loss`` that make sense with them.
        samples: whether the actor is the student, writing rollouts of its own.
        teachers: what the teachers of the recipe do, if it may have any.
        rewards: whether verifiers may grade.
        selects: whether the grader selects what is learnt from; see :func:`distill.student.plan.plan_updates`.
        trains: whether the run trains its student; else recipes/run/merge_and_cascade.py makes it of what stages made.
    """

    actor: Callable[[Parts], Sampler]
    graders: Callable[[Parts], Grader]
    losses: frozenset[str]
    samples: bool
    teachers: Literal["grade", "write", "merge", "none"] = "none"
    rewards: bool = False
    selects: bool = False
    trains: bool = True


def decoding(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Decoding:
    """How the recipe's policy writes, outside of expert parallelism; the step is filled in by the sampler."""
    assert isinstance(tokenizer.eos_token_id, int)
    support = support_of(recipe, tokenizer)
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else tokenizer.eos_token_id
    return Decoding(
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        greedy=False,
        seed=recipe.seed,
        step=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        support=support if support is not None and support.given else None,
    )


def support_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Support | None:
    """Which tokens the recipe's loss compares student and teachers on; None where it is not a top-k loss."""
    loss = bind(recipe.loss)
    return None if loss.support is None else loss.support_with(control_ids(tokenizer))


class Ungraded:
    """Grades nothing: for losses that need only the tokens."""

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Wrap every rollout as it is."""
        return [ScoredRollout(rollout) for microbatch in microbatches for rollout in microbatch]

    def metrics(self) -> Metrics:
        """None: it took nothing."""
        return {}


class TeachersAndRewards:
    """Grades with teachers, and adds the verifiers' reward in the domains that ask for it."""

    def __init__(self, teachers: Grader, rewards: Grader, reward_domains: frozenset[str]) -> None:
        self._teachers, self._rewards, self._reward_domains = teachers, rewards, reward_domains

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Scores of the teachers with rewards beside them; both carry their rollout, so they are joined by it."""
        seen: list[Rollout] = []

        def watched() -> Iterator[list[Rollout]]:
            for microbatch in microbatches:
                seen.extend(microbatch)
                yield microbatch

        graded = self._teachers.score(watched())
        rewarded = self._rewards.score([[r for r in seen if r.domain in self._reward_domains]])
        reward_of = {scored.rollout.index: scored.reward for scored in rewarded}
        return [replace(scored, reward=reward_of.get(scored.rollout.index)) for scored in graded]

    def metrics(self) -> Metrics:
        """What both took."""
        return self._teachers.metrics() | self._rewards.metrics()


def _student(parts: Parts) -> Sampler:
    return parts.student_sampler()


def _writers(parts: Parts) -> Sampler:
    return parts.writers()


def _gold(parts: Parts) -> Sampler:
    return GoldSampler(lambda answer: completion_ids(parts.tokenizer, answer))


def _ungraded(parts: Parts) -> Grader:
    return Ungraded()


def _teachers(parts: Parts) -> Grader:
    domains = parts.recipe.trained_domains
    rewarded = frozenset(name for name, domain in domains.items() if domain.reward)
    if not rewarded:
        return parts.teachers()
    rewards = RewardGrader(parts.tasks, parts.tokenizer)
    taught = any(domain.teacher_weights for domain in domains.values())
    return TeachersAndRewards(parts.teachers(), rewards, rewarded) if taught else rewards


def _rewards(parts: Parts) -> Grader:
    return RewardGrader(parts.tasks, parts.tokenizer)


def _verified(parts: Parts) -> Grader:
    return VerifiedGrader(RewardGrader(parts.tasks, parts.tokenizer), most=parts.recipe.rollout.keep_verified)


TAUGHT = frozenset(name for name, spec in LOSSES.items() if spec.payload is not None)
"""The estimators that learn from teachers."""

METHODS: dict[str, Method] = {
    # Multi-teacher on-policy distillation: MiMo-V2-Flash report, arXiv 2601.02780, section 4.4.
    "mopd": Method(_student, _teachers, losses=TAUGHT, samples=True, teachers="grade", rewards=True),
    # Reward learning on all domains at once: GRPO, arXiv 2402.03300, without a KL term; the gate is mopd's.
    "mix_rl": Method(_student, _rewards, losses=frozenset({"policy_gradient"}), samples=True, rewards=True),
    # The student's own verified answers: arXiv 1705.08439, 2312.06585; online, one round a step.
    "expert_iteration": Method(
        _student, _verified, losses=frozenset({"nll"}), samples=True, rewards=True, selects=True
    ),
    # Fine-tuning on what the teachers write: sequence-level distillation, Kim and Rush, arXiv 1606.07947, sampled.
    "off_policy": Method(_writers, _ungraded, losses=frozenset({"nll"}), samples=False, teachers="write"),
    # Fine-tuning on gold answers: an oracle, which sees what no distillation sees.
    "supervised": Method(_gold, _ungraded, losses=frozenset({"nll"}), samples=False),
    # One domain after the other: the student is the end of a chain of stages, of which every link is measured.
    "cascade": Method(_student, _ungraded, losses=frozenset({"full_reverse_kl"}), samples=False, trains=False),
    # The teachers' weights added up: arXiv 2203.05482, 2212.04089.
    "merge": Method(
        _student, _ungraded, losses=frozenset({"full_reverse_kl"}), samples=False, teachers="merge", trains=False
    ),
}
"""Every method by the name that a recipe gives it."""

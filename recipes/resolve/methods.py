"""Methods: who acts, who grades, and which losses fit; or how a student is made without training.

A method is a row of :data:`METHODS`, not a flag in the loop; or a row of a user's own, `method: ./file.py:NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import LOSSES, BoundLoss
from mopd.distill.payloads import Support
from mopd.distill.recipe.plugins import is_plugin, load_plugin
from mopd.distill.recipe.schema.rollout import Truncated
from mopd.distill.types import Grader, Metrics, Rollout, Sampler, ScoredRollout, UserError
from mopd.recipes.resolve.merge_and_cascade import MadeStudent, MakingJob, cascade, merge
from mopd.rollouts.environments.episodes import gold_episodes
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.rewards import RewardGrader, VerifiedGrader
from mopd.rollouts.sampler import GoldSampler
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import closing_id, completion_ids, control_ids


@dataclass(frozen=True, slots=True)
class Parts:
    """What the sampler and the grader of a trained method are made of.

    Attributes:
        tokenizer: the student's.
        tasks: by domain, of all domains.
        taught: for each trained domain its teachers with their weights; empty where none grades it.
        rewarded: the trained domains whose verifier gives a reward.
        keep_verified: different right answers to a prompt that are learnt from at most.
        truncated: what becomes of rollouts that were cut at the limit.
        student: makes the sampler of the student; for methods that act with it.
        teachers: makes the pool of teachers; for methods that grade with it.
        writers: makes the sampler of the teachers' frozen weights; for methods that learn from what they write.
        players: the same with one sample a prompt; for episodes that the student goes on with.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Mapping[str, Task]
    taught: Mapping[str, Mapping[str, float]]
    rewarded: frozenset[str]
    keep_verified: int
    truncated: Truncated
    student: Callable[[], Sampler]
    teachers: Callable[[], Grader]
    writers: Callable[[], Sampler]
    players: Callable[[], Sampler]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of :data:`METHODS` that trains the student: who acts, who grades, and which losses fit.

    Attributes:
        actor: makes the sampler of the rollouts that the student learns from.
        grader: makes their grader.
        losses: the estimators of ``loss`` that make sense with them.
        samples: whether the actor is the student, writing rollouts of its own.
        teachers: what the teachers of the recipe do, if it may have any; ``both``: they write and grade.
        rewards: whether verifiers may grade.
        selects: whether the grader selects what is learnt from; see :func:`distill.student.plan.plan_updates`.
        heads_alone: whether only draft heads learn, and the model beside them stays as it is.
    """

    actor: Callable[[Parts], Sampler]
    grader: Callable[[Parts], Grader]
    losses: frozenset[str]
    samples: bool
    teachers: Literal["grade", "write", "both", "none"] = "none"
    rewards: bool = False
    selects: bool = False
    heads_alone: bool = False
    trains: ClassVar[bool] = True

    @property
    def teachers_grade(self) -> bool:
        """Whether teachers score what is written."""
        return self.teachers in ("grade", "both")

    @property
    def teachers_write(self) -> bool:
        """Whether teachers write what is learnt from."""
        return self.teachers in ("write", "both")


@dataclass(frozen=True, slots=True)
class MadeMethod:
    """A row of :data:`METHODS` whose student is made of other checkpoints: no rollout is written, nothing is learnt.

    Attributes:
        make: makes candidates and measures them; returns the result.
        teachers: what the teachers of the recipe are for, if it may have any.
    """

    make: Callable[[MakingJob], MadeStudent]
    teachers: Literal["merge", "none"] = "none"
    losses: ClassVar[frozenset[str]] = frozenset()
    samples: ClassVar[bool] = False
    rewards: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    heads_alone: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    teachers_grade: ClassVar[bool] = False
    teachers_write: ClassVar[bool] = False


def support_of(loss: BoundLoss, tokenizer: PreTrainedTokenizerBase) -> Support | None:
    """Which tokens a loss compares student and teachers on; None where it is not a top-k loss."""
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
        self._teachers = teachers
        self._rewards = rewards
        self._reward_domains = reward_domains

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Scores of the teachers with rewards beside them; both carry their rollout, so they are joined by it."""
        seen: list[Rollout] = []

        def passed_on() -> Iterator[list[Rollout]]:
            for microbatch in microbatches:
                seen.extend(microbatch)
                yield microbatch

        graded = self._teachers.score(passed_on())
        rewarded = self._rewards.score([[r for r in seen if r.domain in self._reward_domains]])
        reward_of = {scored.rollout.index: scored.reward for scored in rewarded}
        return [replace(scored, reward=reward_of.get(scored.rollout.index)) for scored in graded]

    def metrics(self) -> Metrics:
        """What both took."""
        return self._teachers.metrics() | self._rewards.metrics()


def _student(parts: Parts) -> Sampler:
    return parts.student()


def _writers(parts: Parts) -> Sampler:
    return parts.writers()


def gold_sampler(parts: Parts) -> Sampler:
    """Writes what is right: gold answers, and the scripts of environments."""
    tokenizer, closing = parts.tokenizer, closing_id(parts.tokenizer)  # which renders the chat template once
    environments = {name: task for name, task in parts.tasks.items() if isinstance(task, EnvironmentTask)}
    if environments:
        return gold_episodes(environments, tokenizer, closing)
    return GoldSampler(lambda answer: completion_ids(tokenizer, answer, closing=closing))


def _ungraded(parts: Parts) -> Grader:
    return Ungraded()


def _teachers(parts: Parts) -> Grader:
    if not parts.rewarded:
        return parts.teachers()
    rewards = _rewards(parts)
    taught = any(parts.taught.values())
    return TeachersAndRewards(parts.teachers(), rewards, parts.rewarded) if taught else rewards


def _rewards(parts: Parts) -> RewardGrader:
    return RewardGrader(parts.tasks, parts.tokenizer, truncated=parts.truncated)


def _verified(parts: Parts) -> Grader:
    return VerifiedGrader(_rewards(parts), most=parts.keep_verified)


TAUGHT = frozenset(name for name, spec in LOSSES.items() if spec.payload is not None)
"""The estimators that learn from teachers."""
WHOLE = frozenset(name for name, spec in LOSSES.items() if spec.payload == "full")
"""Those of them that compare whole distributions: they need no rollouts of the student's own, nor any ratio."""

METHODS: dict[str, Method | MadeMethod] = {
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
    # The same rollouts, learnt from by whole distributions: supervised distillation, GKD, arXiv 2306.13649, section 2.
    "supervised_distillation": Method(_writers, _teachers, losses=WHOLE, samples=False, teachers="both"),
    # The same rollouts, of which only verified ones are learnt from: arXiv 2308.01825.
    "rejection_sampling": Method(
        _writers, _verified, losses=frozenset({"nll"}), samples=False, teachers="write", rewards=True, selects=True
    ),
    # Fine-tuning on gold answers: an oracle, which sees what no distillation sees.
    "supervised": Method(gold_sampler, _ungraded, losses=frozenset({"nll"}), samples=False),
    # The model stays as it is and gets draft heads, which learn what it would write: EAGLE-3, arXiv 2503.01840.
    "draft_heads": Method(_student, _ungraded, losses=frozenset({"nll"}), samples=True, heads_alone=True),
    # One domain after the other: the student is the end of a chain of stages, of which every link is measured.
    "cascade": MadeMethod(cascade),
    # The teachers' weights added up: arXiv 2203.05482, 2212.04089.
    "merge": MadeMethod(merge, teachers="merge"),
}
"""Every shipped method by the name that a recipe gives it."""


def method_of(name: str) -> Method | MadeMethod:
    """The method of a recipe.

    Args:
        name: `method`: a name of :data:`METHODS`, or ``./file.py:NAME``.

    Raises:
        UserError: the file has no such method.
    """
    if not is_plugin(name):
        return METHODS[name]
    method = load_plugin(name, where="method")
    if not isinstance(method, Method | MadeMethod):
        raise UserError(f"`method` is {name!r}, a {type(method).__name__}; a Method or MadeMethod of mopd is needed")
    return method

"""`run` and `stop`: how long, how often, and beside what; `evaluate`: what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mopd.distill.recipe.base import Count, CountOrNone, Fraction, Name, Positive, Seed, Strict, Temperature, refusal


class EvaluateRecipe(Strict):
    """What is measured: greedy answers, and sampled ones beside them where they are asked for."""

    validation_prompts: Count = Field(default=200, description="per domain, for curves")
    test_prompts: Count = Field(default=1000, description="per domain, for final tables")
    graded_prompts: CountOrNone = Field(
        default=16,
        description="of the validation ones, per taught domain, written as in training and graded by "
        "the teachers: held-out KL, entropy, overlap",
    )
    min_headroom: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="points of validation score that teachers must be above the base in every domain that they teach; "
        "where they are not, nothing is trained, and a study leaves the seed out; 0: no rule",
    )
    samples_per_prompt: CountOrNone = Field(
        default=0, description="answers to each held-out prompt that are sampled beside the greedy one; 0: none"
    )
    temperature: Temperature = Field(default=1.0, description="of the sampled answers")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="sampled from the likeliest tokens that have this probability together; 1: from all"
    )
    top_k: CountOrNone = Field(default=0, description="sampled from so many of the likeliest tokens; 0: from all")
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end an answer of an evaluation, and are no part of it"
    )
    seed: Seed = Field(default=0, description="of the held-out prompts; the same for every run that is compared")
    select: Literal["worst_recovery", "last"] = Field(
        default="worst_recovery",
        description="which evaluated step is the result: worst_recovery: the one whose worst domain has the "
        "highest lower end on validation (of recovery; of change over the base where no teacher is clearly better than "
        "it); last: the last",
    )


class StopRecipe(Strict):
    """When a run ends before its last step, in order: it saves, is measured and exported. No bound: never.

    A domain must be beyond one bound at every one of the last evaluations.
    """

    kl: Positive | None = Field(default=None, description="nats a token: held-out reverse KL above this")
    truncation: Fraction | None = Field(default=None, description="part of answers cut at the limit above this")
    repetition: Fraction | None = Field(default=None, description="part of answers that zlib finds repeated above this")
    length: Fraction | None = Field(default=None, description="mean answer shorter than this part of the base's")
    evaluations: Count = Field(default=2, description="in a row that a bound must be passed at")


class PlateauRecipe(Strict):
    """Training goes on while any domain learns, and `steps` is the most: a number of steps fits no two seeds.

    A domain learns while its validation score rises, or while its held-out KL is far above the others' and falls. Once
    none does, the learning rate decays (schedule wsd) and training ends; see distill/metrics/stop_rule.py.
    """

    evaluations: Count = Field(default=3, description="in a row in which nothing was learnt")
    points: Positive = Field(default=1.0, description="of validation score: a best that rises by less has not risen")
    behind: float = Field(
        default=3.0, ge=1, le=1e6, description="times the median held-out KL of the domains: above that it is far above"
    )
    fall: Positive = Field(default=0.1, le=1, description="part by which a held-out KL fell at least, to be falling")
    ceiling: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="points of validation score: it ends too once any domain has them, which leaves specialists "
        "something to gain over a base; null: none",
    )


class ComputeRecipe(Strict):
    """Training ends where it has spent its floating-point operations, and `steps` is the most.

    What counts is what `mopd compare` calls training: generation, teachers' scoring and updates; no evaluation.
    """

    flops: Annotated[float, Field(gt=0, le=1e28)] | None = Field(
        default=None, description="so many, of the run itself; or `equal_to`"
    )
    equal_to: Name | None = Field(
        default=None,
        description="a method of the study: as many as it took on the same seed, each with the making of teachers",
    )
    times: Positive = Field(default=1.0, le=1e6, description="so many times the method of `equal_to`")

    @model_validator(mode="after")
    def _one_of_two(self) -> ComputeRecipe:
        if (self.flops is None) == (self.equal_to is None):
            raise refusal("needs one of `flops` and `equal_to`")
        if self.flops is not None and "times" in self.model_fields_set and self.times != 1.0:
            raise refusal("has `times` beside `flops`, which would change nothing; multiply the flops")
        return self


class StaleRecipe(Strict):
    """What becomes of rollouts that the student has moved away from since they were written.

    It is judged at each update by the policy's probability of what was drawn over the sampler's, with `lag` 0 too. What
    is left out stays in the count of its domain's trained tokens, so that nothing else weighs more.
    """

    ratio: tuple[Positive, Positive] = Field(default=(0.5, 2.0), description="kept range of policy/sampler ratio")
    action: Literal["drop", "mask"] = Field(
        default="drop",
        description="drop: nothing is learnt from a rollout whose geometric mean over its tokens is outside; mask: "
        "nothing from a token that is",
    )

    @field_validator("ratio")
    @classmethod
    def _around_one(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not ratio[0] < 1 < ratio[1]:
            raise refusal(f"is [{ratio[0]:g}, {ratio[1]:g}]; it needs a bound below 1 and one above it, in that order")
        return ratio


class RunRecipe(Strict):
    """How long, how often, and beside what."""

    steps: Count = Field(default=200, description="loop steps; each samples, grades and updates once")
    lag: Literal[0, 1, 2] = Field(
        default=0,
        description="a step's rollouts are written with the weights of so many steps before, while those steps are "
        "learnt from; 0: with the weights that learn from them (docs/lag.md)",
    )
    stale: StaleRecipe | None = Field(
        default=None, description="what of rollouts is left out that the student has moved away from; null: nothing"
    )
    plateau: PlateauRecipe | None = Field(
        default=None, description="ends it earlier, once no domain learns any more; null: it takes all steps"
    )
    compute: ComputeRecipe | None = Field(
        default=None, description="ends it earlier, where it has spent its compute; null: it may spend any"
    )
    evaluate_every: Count = Field(default=20, description="steps between evaluations on validation prompts")
    save_every: Count = Field(default=20, description="steps between checkpoints")
    keep_checkpoints: Count = Field(default=2, description="whole checkpoints kept")
    parallel_stages: Count = Field(
        default=2, description="stages side by side at most, where none waits for another and GPUs suffice"
    )
    card_gib: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description="GiB of a GPU that the plan is held against where this machine has none; none: it is not",
    )
    niceness: int = Field(
        default=0, ge=0, le=19, description="of ranks, teachers and samplers: 0 competes with other work, 19 gives way"
    )
    resident_teachers: Count | None = Field(
        default=None,
        description="processes that grade, a teacher (or the base of several) in each at a time: the others are loaded "
        "in their place, at most once a step; none: all are held",
    )

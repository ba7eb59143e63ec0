"""What a run does besides learning: it logs, measures, keeps samples, and knows when to save and when to stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mopd.distill.loss.teacher_tensors import sampled_logprobs, sampled_rows
from mopd.distill.metrics.drafts import draft_metrics, stale_domains
from mopd.distill.metrics.episodes import episode_metrics
from mopd.distill.metrics.stop_rule import RunLength, stop_reason
from mopd.distill.recipe import RunRecipe, StopRecipe, StudentRecipe
from mopd.distill.tracking.console import TaskHandle
from mopd.distill.tracking.tracker import Tracker, regression
from mopd.distill.types import Metrics, Rollout, RunError, Sampler, ScoredRollout, Weights
from mopd.recipes.compare.budget import read_budget
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.evaluation.teacher_distance import FAULTS, TeacherDistance
from mopd.rollouts.mixture import Mixture
from mopd.rollouts.sampler import prefix_shares, taught_shares


class RunCallbacks:
    """Satisfies :class:`distill.loop.Callbacks` for a run with an evaluator, and for a stage without one."""

    def __init__(
        self,
        run: RunRecipe,
        *,
        length: RunLength,
        mixture: Mixture,
        stop_rule: StopRecipe,
        rollouts_per_domain: int,
        tracker: Tracker,
        costs: Costs,
        progress: TaskHandle,
        stop: threading.Event,
        evaluator: Evaluator | None,
        eval_sampler: Sampler,
        teacher_distance: TeacherDistance | None,
        evaluated: Callable[[], None],
    ) -> None:
        """``rollouts_per_domain`` are kept of each trained domain at an evaluation; ``evaluated`` comes after one."""
        self._run = run
        self._length = length
        self._mixture = mixture
        self._step = 0
        self._stop_rule = stop_rule
        self._rollouts_per_domain = rollouts_per_domain
        self._tracker = tracker
        self._costs = costs
        self._progress = progress
        self._stop = stop
        self._evaluator = evaluator
        self._eval_sampler = eval_sampler
        self._teacher_distance = teacher_distance
        self._evaluated = evaluated
        self._why: str | None = None
        self._stale = set[str]()
        self._fallen = set[str]()

    def resumed(self, step: int) -> None:
        """Void what was recorded of steps that are run again."""
        self._tracker.resume(step)
        if self._evaluator is not None:
            self._evaluator.forget_after(step)
        self._step = step
        for row in (steps := self._tracker.rows("train")):
            self._length.spend(row["step"], row)
        self._mixture.resume(steps)
        self._judge()
        self._progress.start_at(step)
        for last in self._tracker.rows("eval")[-1:]:  # not per token
            self._progress.advance(step, {name: value for name, value in last.items() if isinstance(value, float)})

    def evaluates(self, step: int) -> bool:
        """At the start, every ``evaluate_every`` steps and at the end."""
        if self._evaluator is None or self._evaluator.has_evaluated("student", step, "validation"):
            return False
        return self._measured(step)

    def evaluate(self, step: int, weights: Weights) -> None:
        """Measure the student on the validation prompts, and where it stands against base and teachers."""
        assert self._evaluator is not None
        self._eval_sampler.load_weights(weights, version=step)
        # First: where a teacher fails, nothing is written of this evaluation, and the resumed run takes it again.
        distance = self._teacher_distance
        metrics = {} if distance is None else distance.measure(step, self._eval_sampler, weights)
        metrics |= self._evaluator.evaluate("student", step=step, split="validation", sampler=self._eval_sampler)
        metrics |= self._evaluator.against_teachers()
        self._tracker.log("eval", step, metrics)
        for domain, ends in self._evaluator.fallen.items():
            if domain not in self._fallen:
                self._fallen.add(domain)
                self._tracker.alert(*regression(domain, ends, f"on validation questions, after step {step}"))
        self._judge()
        self._progress.advance(step, metrics)
        self._evaluated()

    def record(self, step: int, batch: Sequence[ScoredRollout], metrics: Metrics) -> None:
        """Log a finished step; where it is evaluated, keep a few of its rollouts."""
        self._step = step
        taken = {f"prompts/{domain}": len(places) for domain, places in self._mixture.places(step - 1).items()}
        rollouts = [scored.rollout for scored in batch]
        metrics = metrics | taken | self._costs.of_step(batch) | draft_metrics(rollouts) | episode_metrics(rollouts)
        metrics |= taught_shares(rollouts) | prefix_shares(rollouts)
        if self._run.lag:
            metrics["staleness"] = float(max(step - 1 - rollout.version[0] for rollout in rollouts))
        self._mixture.see(metrics)
        self._length.spend(step, metrics)
        self._tracker.log("train", step, metrics)
        self._warn_of_stale_heads(step, metrics)
        self._progress.advance(step, metrics)
        if self._evaluator is not None and self._measured(step):
            self._tracker.append_rows("rollouts", self._samples(self._evaluator, step, batch))

    def _warn_of_stale_heads(self, step: int, metrics: Metrics) -> None:
        """Say it once a domain where draft heads guess clearly worse than they did."""
        asked = [d for d in self._length.domains if f"draft_overlap_1/{d}" in metrics and d not in self._stale]
        if not asked or step % self._run.evaluate_every:
            return
        for domain, (best, now) in stale_domains(self._tracker.rows("train"), asked).items():
            self._stale.add(domain)
            self._progress.print(
                f"warning: draft heads are stale in domain {domain}: their first guess agrees with the student in "
                f"{now:.0%} of draws, and did in {best:.0%}. Rollouts are slower for it, and not different; raise "
                "`mtp.share` or `mtp.lr`"
            )

    def unused(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Log what was written for steps that never come, once; it is counted, and nothing is learnt from it."""
        if rollouts and not any(row["step"] == step for row in self._tracker.rows("unused")):
            self._tracker.log("unused", step, self._costs.of_unused(rollouts))

    def failed(self, step: int, metrics: Metrics, error: RunError) -> None:
        """Log what teachers lost in the step that is not finished, and that will be taken again: no time, no cost."""
        faults = {name: n for name, n in metrics.items() if name.startswith(FAULTS)}
        self._tracker.log("fault", step + 1, faults, message=str(error))

    def saves(self, step: int) -> bool:
        """Every ``save_every`` steps, and where it was measured best so far."""
        if step % self._run.save_every == 0:
            return True
        evaluator = self._evaluator  # asked only after an evaluation: it goes through all answers
        return (
            evaluator is not None
            and evaluator.has_evaluated("student", step, "validation")
            and evaluator.selected(0).step == step
        )

    def ended(self) -> bool:
        """Whether the recipe's stop rule fired at the last evaluation, or no domain learns and the rate has decayed.

        A resumed run finds it again.
        """
        return self._why is not None or self._step >= self._length.steps

    def stops(self) -> bool:
        """Whether Ctrl-C was pressed, or another stage failed."""
        return self._stop.is_set()

    def _measured(self, step: int) -> bool:
        return step % self._run.evaluate_every == 0 or step == self._length.steps

    def _judge(self) -> None:
        """Work out from all evaluations whether the run ends here, and how long it is."""
        evaluations = self._tracker.rows("eval")
        self._why = stop_reason(self._stop_rule, evaluations)
        self._length.see(evaluations)
        self._progress.takes(self._length.steps)

    def _samples(self, evaluator: Evaluator, step: int, batch: Sequence[ScoredRollout]) -> list[dict[str, Any]]:
        """The first few rollouts of every domain, with verdict and per-token advantage."""
        kept: dict[str, list[ScoredRollout]] = {domain: [] for domain in self._length.domains}
        for scored in batch:
            chosen = kept[scored.rollout.domain]
            if len(chosen) < self._rollouts_per_domain:
                chosen.append(scored)
        return [self._sample(evaluator, step, scored) for chosen in kept.values() for scored in chosen]

    def _sample(self, evaluator: Evaluator, step: int, scored: ScoredRollout) -> dict[str, Any]:
        rollout = scored.rollout
        text = evaluator.decode(rollout)
        return {
            "step": step,
            "domain": rollout.domain,
            "prompt_id": rollout.prompt.id,
            "prompt": rollout.prompt.text,
            "text": text,
            "verdict": evaluator.verify([rollout.prompt], [text])[0],
            "finish": rollout.finish,
            "version": list(rollout.version),
            "tokens": evaluator.pieces(rollout),
            "advantages": sampled_advantages(scored),
        }


def run_length(run: RunRecipe, student: StudentRecipe, domains: Collection[str], folder: Path) -> RunLength:
    """How many steps a run or a stage takes that trains on ``domains``; with a plateau its rate's decay comes after.

    Args:
        folder: the run's, where a study notes what it may spend.

    Raises:
        UserError: see :func:`recipes.compare.budget.read_budget`.
    """
    flops = read_budget(run.compute, folder)
    decay = math.ceil(student.optimizer.decay_steps / student.updates_per_step)
    return RunLength(run.steps, run.plateau, domains=domains, decay=decay, flops=flops)


def sampled_advantages(scored: ScoredRollout) -> list[float]:
    """``log pi_T - log mu`` of each trained token, in nats.

    Empty where no teacher graded the rollout, or where one shipped what does not tell it, such as hidden states.

    It is told with the sampler's log-probabilities: those of the weights that wrote the rollout, up to rounding.
    """
    rollout = scored.rollout
    untold = [score for _, score in scored.scores if sampled_rows(score.payload, rollout) is None]
    if untold or not scored.scores:
        return []
    gap_N = sampled_logprobs(scored) - rollout.sampler_logprobs[rollout.loss_mask]
    return [round(float(gap), 4) for gap in gap_N]

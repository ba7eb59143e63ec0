"""One training run, put together: ranks, sampler, graders and prompts around the loop; runs and stages alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextlib import closing as closing_of
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.hosts import HOSTS
from mopd.distill.lagged_loop import train_with_lag
from mopd.distill.loop import train
from mopd.distill.loss.registry import BoundLoss, located
from mopd.distill.recipe import DomainRecipe, MTPRecipe, RolloutRecipe, RunRecipe
from mopd.distill.recipe.schema.domains import PrefixName
from mopd.distill.student.driver import DeepSpeedStudent
from mopd.distill.student.spec import StudentSpec
from mopd.distill.tracking.console import TaskHandle
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Prompt, Sampler, Weights
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.evaluation.teacher_distance import TeacherDistance, payload_to_ask
from mopd.recipes.report.card import run_card
from mopd.recipes.resolve.data import prompt_source
from mopd.recipes.resolve.methods import Method, Parts, gold_sampler, support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import named_base
from mopd.recipes.resolve.teacher_prompts import OwnTokenizer, own_sizes, retokenizers_of, teacher_reads
from mopd.recipes.resolve.teachers import head_sources
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.hooks import RunCallbacks, run_length
from mopd.recipes.run.preflight import Candidate, candidates, passed, preflight, wait_for_teachers
from mopd.recipes.run.ranks import RayRanks
from mopd.recipes.run.samplers import samplers_of_run, teachers_writing, with_prefixes, with_teachers_writing
from mopd.rollouts.engines.base import Drafts, FrozenModel
from mopd.rollouts.environments.episodes import with_episodes
from mopd.rollouts.environments.kept import FOLDER, KeptEpisodes, keeps_episodes
from mopd.rollouts.prompts import Prefetched, PromptSource
from mopd.rollouts.rewards import TruncatedRollouts
from mopd.rollouts.sampler import Samplers, sampler_settings
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import end_token_ids, token_count
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds import make_source
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

DRAFT_COSTS = "draft_costs.json"
"""In a run's folder: how long writing takes with and without guesses, as measured at its start."""


@dataclass(frozen=True, slots=True)
class Training:
    """A run or a stage about to be trained.

    Attributes:
        resolved: its own recipe; a stage's is made by :func:`recipes.resolve.stages.stage_recipe`.
        folder: where its checkpoints, metrics and result go.
        attempt: the id that owns ``folder``.
        model: the checkpoint it starts from.
        teachers: checkpoints of its teachers by name; the bases of those that are adapters.
        own_tokenizers: of the teachers that read rollouts in their own tokens, by name.
        frozen: its teachers as models that are sampled, by name.
        left_out: weights that the checkpoint at the beginning of its chain has and the student has not, by name.
    """

    resolved: Resolved
    folder: Path
    attempt: str
    model: str
    teachers: Mapping[str, str]
    own_tokenizers: Mapping[str, OwnTokenizer]
    frozen: Mapping[str, FrozenModel]
    tokenizer: PreTrainedTokenizerBase
    tasks: Mapping[str, Task]
    tracker: Tracker
    costs: Costs
    evaluator: Evaluator | None
    is_stage: bool
    left_out: Sequence[str]

    def run(self, context: RunContext, *, title: str) -> int:
        """Train to the end, measure the selected step's weights on the test prompts, export them to ``student/``.

        Returns the number of finished steps: fewer than the recipe's where its stop rule fired.

        Raises:
            Interrupted: it was asked to stop; the last finished step is saved.
            RunError: a process or a number broke; the newest checkpoint resumes.
        """
        recipe = self.resolved.recipe
        with ExitStack() as closing:
            progress = context.progress.task(title, recipe.run.steps)
            closing.callback(progress.close)
            method, trained = self.resolved.method, recipe.trained_domains
            assert isinstance(method, Method), "made_student.py makes the others"
            teachers = self._teachers(context, lambda: student.weights()) if method.teachers_grade else None
            if teachers is not None:
                closing.callback(teachers.close)
            length = run_length(recipe.run, recipe.student, tuple(trained), self.folder)
            student = self._student(closing, context.progress.print, lambda: length.steps)
            samplers = self.samplers(context, closing)
            if not self.is_stage:  # no stage comes after the run itself
                HOSTS.clear()
            parts = self._parts(samplers, teachers, trained, recipe.rollout, recipe.run)
            sampler = self._actor(method, parts, trained, recipe.rollout, recipe.seed)
            if method.samples or self.evaluator is not None:
                samplers.check(student.weights(), named=f"`student.model` ({self.model})")
            # Whoever acts in training, it is the student that is evaluated.
            eval_sampler = sampler if self.evaluator is None else samplers.evaluate
            source = self._prompts(trained, seed=recipe.seed, rule=recipe.prompt_rule, lag=recipe.run.lag)
            if teachers is not None:
                wait_for_teachers(teachers, tokens=len(self.tokenizer), own=own_sizes(self.own_tokenizers))
                to_examine = candidates(self.resolved.teachers, trained)
                self._preflight(teachers, student, samplers.train, source(0), to_examine, context.progress.print)
            routes, loss, graded = self.resolved.routes, self.resolved.loss, recipe.evaluate.graded_prompts
            prompts = closing.enter_context(closing_of(Prefetched(source)))
            last = _loop(recipe.run.lag, samplers)(
                student=student,
                sampler=sampler,
                grader=TruncatedRollouts(method.grader(parts), policy=recipe.rollout.truncated),
                prompts=prompts,
                steps=recipe.run.steps,
                callbacks=RunCallbacks(
                    recipe.run,
                    length=length,
                    mixture=source.mixture,
                    stop_rule=recipe.stop,
                    rollouts_per_domain=recipe.track.rollouts_per_domain,
                    tracker=self.tracker,
                    costs=self.costs,
                    progress=progress,
                    stop=context.stop,
                    evaluator=self.evaluator,
                    eval_sampler=eval_sampler,
                    teacher_distance=self._teacher_distance(teachers, routes, loss, graded, recipe.rollout.temperature),
                    evaluated=context.report_soon,
                ),
            )
            self._conclude(student, eval_sampler, progress, last)
            return last

    def _prompts(self, trained: Mapping[str, DomainRecipe], *, seed: int, rule: str, lag: int) -> PromptSource:
        return prompt_source(trained, self.tasks, self.tokenizer, seed=seed, rule=rule, lag=lag)

    def samplers(self, context: RunContext, closing: ExitStack, teacher: str | None = None) -> Samplers:
        """All that samples in the run; the processes end with ``closing``.

        Args:
            teacher: one of another tokenizer, which they sample as its answers are written; None: as the student's are.
        """
        recipe = self.resolved.recipe
        tokenizer = self.tokenizer if teacher is None else self.own_tokenizers[teacher].tokenizer
        return samplers_of_run(
            recipe.rollout,
            recipe.student.engine,
            settings=sampler_settings(
                recipe.rollout,
                tokenizer,
                model=self.model if teacher is None else self.teachers[teacher],
                seed=recipe.seed,
                support=support_of(self.resolved.loss, tokenizer),
                evaluate=recipe.evaluate,
                drafts=self._drafts(recipe.mtp) if teacher is None else None,
            ),
            initial=FrozenModel(
                self.model,
                trust_remote_code=recipe.student.trust_remote_code,
                attention=recipe.student.engine.attn_implementation,
            ),
            lora=recipe.student.lora,
            device=self.resolved.device,
            dtype=self.resolved.dtype,
            gpus=self.resolved.sampler_gpus,
            faults=recipe.faults,
            folder=str(self.folder),
            say=context.progress.print,
            heads=recipe.mtp.heads > 0,
            closing=closing,
            episodes=partial(with_episodes, tasks=self.tasks, tokenizer=self.tokenizer),
        )

    def _drafts(self, mtp: MTPRecipe) -> Drafts | None:
        """How the student and the models that it is measured against guess, with costs that a resumed run reads."""
        if not mtp.heads or not mtp.drafts:
            return None
        return Drafts(mtp.drafts, measured=True, record=str(self.folder / DRAFT_COSTS))

    def _parts(
        self,
        samplers: Samplers,
        pool: TeacherPool | None,
        trained: Mapping[str, DomainRecipe],
        rollout: RolloutRecipe,
        run: RunRecipe,
    ) -> Parts:
        """What the method's sampler and grader are made of."""
        routes = {name: domain.teacher_weights for name, domain in trained.items()}
        players = {name: self.frozen[name] for name in self.resolved.writers}

        def teachers() -> TeacherPool:
            assert pool is not None, "only a method whose teachers grade asks for them"
            return pool

        return Parts(
            self.tokenizer,
            self.tasks,
            taught=routes,
            rewarded=frozenset(name for name, domain in trained.items() if domain.reward),
            keep_verified=rollout.keep_verified,
            truncated=rollout.truncated,
            student=lambda: self._kept(samplers.train, steps=run.save_every * (run.keep_checkpoints + 1)),
            teachers=teachers,
            writers=lambda: teachers_writing(samplers, self.resolved.teachers, self.frozen, routes),
            players=lambda: teachers_writing(samplers, self.resolved.teachers, players, routes, once=True),
        )

    def _actor(
        self, method: Method, parts: Parts, trained: Mapping[str, DomainRecipe], rollout: RolloutRecipe, seed: int
    ) -> Sampler:
        """Who writes what is learnt from: the method's actor, and with it whom the recipe has write besides."""
        players: dict[PrefixName, Callable[[], Sampler]] = {
            "teacher": parts.players,
            "dataset": lambda: gold_sampler(parts),
        }
        actor = with_prefixes(method.actor(parts), trained, players, seed=seed)
        return with_teachers_writing(actor, rollout, parts.writers)

    def _kept(self, sampler: Sampler, *, steps: int) -> Sampler:
        """The sampler of rollouts to learn from; those of programs are kept for the steps that a run may go back."""
        kept = keeps_episodes(self.tasks)
        return KeptEpisodes(sampler, self.folder / FOLDER, steps=steps) if kept else sampler

    def _preflight(
        self,
        pool: TeacherPool,
        student: DeepSpeedStudent,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        to_examine: Sequence[Candidate],
        say: Callable[[Any], None],
    ) -> None:
        """Try the teachers out on rollouts of the student, unless that was done before.

        Raises:
            RunError, UserError: see :mod:`recipes.run.preflight`.
        """
        if self.evaluator is None or passed(self.folder):
            return
        sampler.load_weights(student.weights(), version=0)
        rows = self.evaluator.rows
        preflight(self.folder, pool=pool, sampler=sampler, prompts=prompts, rows=rows, candidates=to_examine, say=say)

    def _teacher_distance(
        self,
        pool: TeacherPool | None,
        routes: Mapping[str, Mapping[str, float]],
        loss: BoundLoss,
        graded_prompts: int,
        temperature: float,
    ) -> TeacherDistance | None:
        """What has teachers grade held-out prompts; None for a stage, without teachers, or where no prompt is asked."""
        if self.evaluator is None or pool is None or graded_prompts == 0:
            return None
        questions = self.evaluator.prompts["validation"]
        prompts = [prompt for name, weights in routes.items() if weights for prompt in questions[name][:graded_prompts]]
        payload = payload_to_ask(loss)
        return TeacherDistance(
            prompts, pool, payload=payload, temperature=temperature, tracker=self.tracker, costs=self.costs
        )

    def _conclude(self, student: DeepSpeedStudent, eval_sampler: Sampler, progress: TaskHandle, last: int) -> None:
        """Go back to the selected step, if that is not the last; measure and export it."""
        step = last if self.evaluator is None else self.evaluator.selected(last).step
        if step != last:
            student.load(step)
        if self.evaluator is not None and not self.evaluator.has_evaluated("student", step, "test"):
            progress.note("measuring the student on test prompts")
            eval_sampler.load_weights(student.weights(), version=step)
            self.evaluator.evaluate("student", step=step, split="test", sampler=eval_sampler)
        student.export(str(self.folder / "student"), beside=self.card())

    def card(self) -> Mapping[str, bytes]:
        """The model card of the student that was measured, with its picture, by file names; a stage's has none."""
        if self.is_stage or self.evaluator is None:
            return {}
        return run_card(self.folder, self.evaluator.rows, left_out=self.left_out)

    def _student(self, closing: ExitStack, say: Callable[[str], None], steps: Callable[[], int]) -> DeepSpeedStudent:
        """The student in its ranks, which end with ``closing``; ``steps``: of the whole run, as far as is known."""
        recipe = self.resolved.recipe
        spec = StudentSpec(
            model=self.model,
            engine=recipe.student.engine,
            optimizer=recipe.student.optimizer,
            loss=located(recipe.loss),
            temperature=recipe.rollout.temperature,
            domains=tuple(recipe.trained_domains),
            seed=recipe.seed,
            device=self.resolved.device,
            run_dir=str(self.folder),
            attempt=self.attempt,
            keep_checkpoints=recipe.run.keep_checkpoints,
            gpus=self.resolved.rank_gpus,
            end_token_ids=end_token_ids(self.tokenizer, self.model),
            vocabulary=token_count(self.tokenizer),
            trust_remote_code=recipe.student.trust_remote_code,
            mtp=recipe.mtp,
            heads_alone=self.resolved.method.heads_alone,
            lora=recipe.student.lora,
            stale=recipe.run.stale,
            base=named_base(recipe.student.reference, self.model),
            heads=head_sources(self.resolved.teachers, self.teachers) if self.resolved.loss.payload == "hidden" else (),
        )
        ranks = RayRanks(spec, recipe.faults)
        closing.callback(ranks.close)
        HOSTS.prepare_later()  # the student's are up
        return DeepSpeedStudent(
            ranks,
            spec,
            shares={name: domain.share for name, domain in recipe.trained_domains.items()},
            steps=steps,
            updates_per_step=recipe.student.updates_per_step,
            share_rule=recipe.share_rule,
            selective=self.resolved.method.selects or recipe.rollout.truncated == "mask",
            say=say,
            keep_steps=lambda: () if self.evaluator is None else (self.evaluator.selected(0).step,),
        )

    @property
    def of_student(self) -> OwnTokenizer:
        """The student's tokenizer with what ends its answers."""
        return OwnTokenizer(self.tokenizer, end_token_ids(self.tokenizer, self.model))

    def _teachers(self, context: RunContext, student: Callable[[], Weights]) -> TeacherPool | None:
        """The teachers, which begin to load in their processes; ``student`` gives its weights once they are there."""
        if not self.teachers:
            return None
        recipe = self.resolved.recipe
        asked, own = {name: self.resolved.teachers[name] for name in self.teachers}, self.own_tokenizers
        tokenizers = {name: own[name].tokenizer if name in own else self.tokenizer for name in asked}
        asking = recipe.rollout.temperature, recipe.student.engine.microbatch_tokens
        specs = {
            name: TeacherSpec(
                make_source(teacher.setup(self.teachers[name])),
                Conditions(
                    *asking,
                    support_of(self.resolved.loss, tokenizers[name]),
                    token_count(tokenizers[name]),
                    packing=recipe.student.engine.packing and teacher.kind.packs,
                ),
                gpus=teacher.gpus,
                replicas=teacher.settings.replicas,
                adapter=teacher.adapter,
                resources=tuple(sorted(teacher.settings.resources.items())),
                has_weights=teacher.kind.has_weights,
            )
            for name, teacher in asked.items()
        }
        payload = self.resolved.loss.payload
        assert payload is not None, "a method without teachers has none to ask"
        return TeacherPool(
            specs,
            routes=self.resolved.routes,
            payload=payload,
            faults=recipe.faults,
            say=context.progress.print,
            resident=recipe.run.resident_teachers,
            reads=teacher_reads(asked, self.tasks, self.tokenizer),
            retokenizers=retokenizers_of(asked, own, self.tasks, self.of_student, self.resolved.loss),
            on_student=[name for name in specs if name in self.resolved.on_student],
            student=student,
        )


def _loop(lag: int, samplers: Samplers) -> Callable[..., int]:
    return partial(train_with_lag, lag=lag, beside=samplers.beside_student) if lag else train

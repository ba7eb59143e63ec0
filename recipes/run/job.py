"""One training run, put together: ranks, sampler, graders and prompts around the loop; runs and stages alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mopd.distill.loop import train
from mopd.distill.loss.registry import located, loss_spec
from mopd.distill.recipe import Recipe
from mopd.distill.student.driver import DeepSpeedStudent
from mopd.distill.student.rank import StudentSpec
from mopd.distill.tracking.console import TaskHandle
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Sampler
from mopd.recipes.check.served import endpoint_of, served_source
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.evaluation.teacher_distance import TeacherDistance, payload_to_ask
from mopd.recipes.resolve.data import prompt_source
from mopd.recipes.resolve.methods import Method, Parts, method_of, routes, support_of
from mopd.recipes.resolve.placement import teacher_device, teacher_gpus
from mopd.recipes.resolve.sources import adapter_folders, head_sources, trusted
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.hooks import RunCallbacks
from mopd.recipes.run.preflight import before_first_step
from mopd.recipes.run.ranks import RayRanks
from mopd.recipes.run.samplers import samplers_of_run, teachers_writing
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses
from mopd.rollouts.prompts import Prefetched
from mopd.rollouts.sampler import Samplers, sampler_settings
from mopd.rollouts.tasks import Task
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint
from mopd.teachers.kinds.custom import CustomSource
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions, TeacherSource


@dataclass(frozen=True, slots=True)
class Training:
    """A run or a stage about to be trained.

    Attributes:
        recipe: its own; a stage's is made by :func:`recipes.resolve.stages.stage_recipe`.
        folder: where its checkpoints, metrics and result go.
        attempt: the id that owns ``folder``.
        model: the checkpoint it starts from.
        teachers: checkpoints of its teachers by name; the bases of those that are adapters.
    """

    recipe: Recipe
    folder: Path
    attempt: str
    model: str
    teachers: Mapping[str, str]
    tokenizer: PreTrainedTokenizerBase
    tasks: Mapping[str, Task]
    tracker: Tracker
    costs: Costs
    evaluator: Evaluator | None

    def run(self, context: RunContext, *, title: str) -> int:
        """Train to the end, measure the selected step's weights on the test prompts, export them to ``student/``.

        Returns the number of finished steps: fewer than the recipe's where its stop rule fired.

        Raises:
            Interrupted: it was asked to stop; the last finished step is saved.
            RunError: a process or a number broke; the newest checkpoint resumes.
        """
        recipe = self.recipe
        with ExitStack() as closing:
            progress = context.progress.task(title, recipe.run.steps)
            closing.callback(progress.close)
            method = method_of(recipe.method)
            assert isinstance(method, Method), "made_student.py makes the others"
            teachers = self._teachers(context) if method.teachers == "grade" else None  # first: they load meanwhile
            if teachers is not None:
                closing.callback(teachers.close)
            spec = self._student_spec(context)
            ranks = RayRanks(spec)
            closing.callback(ranks.close)
            student = self._student(ranks, spec)

            def graders() -> TeacherPool:
                assert teachers is not None
                return teachers

            samplers = self.samplers(context, closing)
            parts = Parts(
                self.tokenizer,
                self.tasks,
                taught={name: domain.teacher_weights for name, domain in recipe.trained_domains.items()},
                rewarded=frozenset(name for name, domain in recipe.trained_domains.items() if domain.reward),
                keep_verified=recipe.rollout.keep_verified,
                student=lambda: samplers.train,
                teachers=graders,
                writers=lambda: self._writers(context, samplers),
            )
            sampler = method.actor(parts)
            # Whoever acts in training, it is the student that is evaluated.
            eval_sampler = sampler if self.evaluator is None else samplers.evaluate
            if teachers is not None:
                before_first_step(self, context, teachers, student, samplers.train)
            prompts = Prefetched(prompt_source(recipe.trained_domains, self.tasks, self.tokenizer, seed=recipe.seed))
            closing.callback(prompts.close)
            last = train(
                student=student,
                sampler=sampler,
                grader=method.grader(parts),
                prompts=prompts,
                steps=recipe.run.steps,
                callbacks=RunCallbacks(
                    recipe,
                    tracker=self.tracker,
                    costs=self.costs,
                    progress=progress,
                    stop=context.stop,
                    evaluator=self.evaluator,
                    eval_sampler=eval_sampler,
                    held_out=self._teacher_distance(teachers),
                ),
            )
            self._conclude(student, eval_sampler, progress, last)
            return last

    def _teacher_distance(self, teachers: TeacherPool | None) -> TeacherDistance | None:
        """What has teachers grade held-out prompts; None for a stage, without teachers, or where no prompt is asked."""
        n = self.recipe.evaluate.graded_prompts
        if self.evaluator is None or teachers is None or n == 0:
            return None
        questions = self.evaluator.prompts["validation"]
        prompts = [p for name, weights in routes(self.recipe).items() if weights for p in questions[name][:n]]
        payload = payload_to_ask(self.recipe.loss)
        return TeacherDistance(prompts, teachers, payload=payload, tracker=self.tracker, costs=self.costs)

    def samplers(self, context: RunContext, closing: ExitStack) -> Samplers:
        """All that samples in the run; the processes end with ``closing``."""
        recipe = self.recipe
        support = support_of(recipe, self.tokenizer)
        return samplers_of_run(
            recipe.rollout,
            recipe.student.engine,
            settings=sampler_settings(recipe.rollout, self.tokenizer, seed=recipe.seed, support=support),
            initial=FrozenModel(self.model, trust_remote_code=recipe.student.trust_remote_code),
            device=context.device,
            dtype=context.dtype(recipe.student.engine.dtype),
            gpus=context.gpus,
            closing=closing,
        )

    def frozen_teacher(self, name: str, folder: str) -> FrozenModel:
        """A teacher as a model that is sampled; ``folder`` has its checkpoint, or the base of its adapter."""
        recipe = self.recipe
        served = recipe.teachers[name].endpoint is not None
        return FrozenModel(
            folder,
            adapter_folders(recipe).get(name),
            trust_remote_code=trusted(recipe, f"teachers.{name}.model"),
            endpoint=endpoint_of(recipe, name) if served else None,
            faults=recipe.faults,
        )

    def _writers(self, context: RunContext, samplers: Samplers) -> Sampler:
        """The teachers, which write the rollouts."""
        recipe = self.recipe
        writers = {
            name: (
                self.frozen_teacher(name, path),
                SamplerProcesses(
                    1,
                    teacher_device(recipe, name, context.device),
                    self.teacher_dtype(name, context),
                    teacher_gpus(recipe, name, context.device),
                    recipe.teachers[name].resources,
                ),
            )
            for name, path in self.teachers.items()
        }
        taught = {name: domain.teacher_weights for name, domain in recipe.trained_domains.items()}
        return teachers_writing(samplers, writers, taught)

    def _conclude(self, student: DeepSpeedStudent, eval_sampler: Sampler, progress: TaskHandle, last: int) -> None:
        """Go back to the selected step, if that is not the last; measure and export it."""
        step = last if self.evaluator is None else self.evaluator.selected(last).step
        if step != last:
            student.load(step)
        if self.evaluator is not None and not self.evaluator.has_evaluated("student", step, "test"):
            progress.note("measuring the student on test prompts")
            eval_sampler.load_weights(student.weights(), version=step)
            self.evaluator.evaluate("student", step=step, split="test", sampler=eval_sampler)
        student.export(str(self.folder / "student"))

    def _student(self, ranks: RayRanks, spec: StudentSpec) -> DeepSpeedStudent:
        recipe = self.recipe
        return DeepSpeedStudent(
            ranks,
            spec,
            shares={name: domain.share for name, domain in recipe.trained_domains.items()},
            updates_per_step=recipe.student.updates_per_step,
            share_rule=recipe.share_rule,
            selective=method_of(recipe.method).selects,
            keep_steps=lambda: () if self.evaluator is None else (self.evaluator.selected(0).step,),
        )

    def _student_spec(self, context: RunContext) -> StudentSpec:
        recipe = self.recipe
        return StudentSpec(
            model=self.model,
            engine=recipe.student.engine,
            optimizer=recipe.student.optimizer,
            loss=located(recipe.loss),
            temperature=recipe.rollout.temperature,
            domains=tuple(recipe.trained_domains),
            total_optimizer_steps=recipe.run.steps * recipe.student.updates_per_step,
            seed=recipe.seed,
            device=context.device,
            run_dir=str(self.folder),
            attempt=self.attempt,
            keep_checkpoints=recipe.run.keep_checkpoints,
            trust_remote_code=recipe.student.trust_remote_code,
            heads=head_sources(recipe, self.teachers, lambda name: self.teacher_dtype(name, context)),
        )

    def _teachers(self, context: RunContext) -> TeacherPool | None:
        if not self.teachers:
            return None
        recipe = self.recipe
        support = support_of(recipe, self.tokenizer)
        conditions = Conditions(recipe.rollout.temperature, recipe.student.engine.microbatch_tokens, support)
        specs = {
            name: TeacherSpec(
                self._source(name, path, context),
                conditions,
                gpus=teacher_gpus(recipe, name, context.device),
                replicas=recipe.teachers[name].replicas,
                adapter=adapter_folders(recipe).get(name),
                resources=tuple(sorted(recipe.teachers[name].resources.items())),
            )
            for name, path in self.teachers.items()
        }
        payload = loss_spec(recipe.loss).payload
        assert payload is not None, "a method without teachers has none to ask"
        return TeacherPool(
            specs,
            routes=routes(recipe),
            payload=payload,
            faults=recipe.faults,
            say=context.progress.print,
            resident=recipe.run.resident_teachers,
        )

    def _source(self, name: str, path: str, context: RunContext) -> TeacherSource:
        """What a teacher's processes open."""
        recipe, code = self.recipe, trusted(self.recipe, f"teachers.{name}.model")
        if recipe.teachers[name].endpoint is not None:
            return served_source(recipe, name, path, trust_remote_code=code)
        device, dtype = teacher_device(recipe, name, context.device), self.teacher_dtype(name, context)
        if (scorer := recipe.teachers[name].scorer) is not None:
            return CustomSource.of(scorer, path, device, dtype)
        return Checkpoint(path, device, dtype, trust_remote_code=code)

    def teacher_dtype(self, name: str, context: RunContext) -> str:
        """A teacher's dtype, resolved."""
        asked = self.recipe.teachers[name].dtype
        return context.dtype(self.recipe.student.engine.dtype if asked == "auto" else asked)

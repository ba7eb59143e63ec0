"""`mopd check --deep`: starts student and teachers, one at a time, and asks of each teacher whether it can teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import bind
from mopd.distill.metrics.evaluate import evaluate
from mopd.distill.models.adapters import active
from mopd.distill.recipe import Architecture
from mopd.distill.types import Float32, Full, Int32, Payload, Rollout, RunError, Sampler, UserError
from mopd.recipes.check.served import served_source
from mopd.recipes.evaluation.evaluator import verify
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import Source, stage_name
from mopd.recipes.resolve.stages import model_path
from mopd.recipes.resolve.teachers import Device
from mopd.recipes.run.findings import ROLLOUTS, Finding, judge, reverse_kl, unanswering
from mopd.recipes.run.launch import on_disk
from mopd.recipes.run.preflight import conclude
from mopd.recipes.run.samplers import frozen_teacher
from mopd.rollouts.engines import engine_of
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses, StudentModel
from mopd.rollouts.engines.in_process import InProcess
from mopd.rollouts.sampler import Samplers, make_samplers, sampler_settings
from mopd.rollouts.tokenizer import completion_text
from mopd.teachers.dry_run import DryRun, asked_in_trial, dry_run, reference_of
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.kinds.custom import CustomSource
from mopd.teachers.scorer import TOLERANCE, Conditions, Scorer
from mopd.teachers.validate import Expected


@dataclass(frozen=True, slots=True)
class _Student:
    """The student before the first step: its rollouts by domain, their distributions, its answers by prompt id."""

    folder: str
    tokenizer: PreTrainedTokenizerBase
    rollouts: Mapping[str, list[Rollout]]
    logprobs: Mapping[str, list[Float32]]
    correct: Mapping[str, float]


class DeepCheck:
    """The deep check of a recipe that passed the static one; ``out`` is the run's folder, whose stages may be there."""

    def __init__(self, resolved: Resolved, out: Path) -> None:
        self._resolved = resolved
        self._recipe = resolved.recipe
        self._out = out.resolve()

    def findings(self) -> list[Finding]:
        """One for every teacher and domain that it grades, in the recipe's order of domains."""
        routes = {name: domain.teacher_weights for name, domain in self._recipe.trained_domains.items()}
        graded = {name: [d for d, weights in routes.items() if name in weights] for name in self._recipe.teachers}
        start = self._folder(self._recipe.student.model)
        if start is None:
            return [self._later(t, d, self._recipe.student.model) for t, domains in graded.items() for d in domains]
        student = self._student(start)
        found: list[Finding] = []
        for name, domains in graded.items():
            teacher = self._recipe.teachers[name]
            source = self._resolved.teachers[name].model.source
            folder = self._folder(source, weights=teacher.endpoint is None)
            if folder is not None and (teacher.endpoint is not None or teacher.scorer is not None):
                found += self._only_scoring(name, folder, domains, student)
            elif folder is None:
                found += [self._later(name, domain, source) for domain in domains]
            else:
                found += self._teacher(name, folder, domains, student)
        return found

    def _folder(self, source: Source, *, weights: bool = True) -> str | None:
        """Where a model lies; None where a run has yet to make it."""
        path = model_path(source, out=self._out, folder=self._out)
        if isinstance(source, Architecture) or stage_name(source) is not None:
            return path if Path(path).is_dir() else None
        return on_disk(path, weights=weights)

    def _later(self, teacher: str, domain: str, source: Source) -> Finding:
        stage = source.architecture if isinstance(source, Architecture) else source
        return Finding(teacher, domain, "later", f"after {stage}", "a run asks it then, before its first step")

    def _model(
        self, folder: str, device: Device, dtype: str, adapter: str | None, *, trust_remote_code: bool
    ) -> TeacherModel:
        recipe = self._recipe
        return TeacherModel(
            folder,
            device=device,
            dtype=dtype,
            temperature=recipe.rollout.temperature,
            microbatch_tokens=recipe.student.engine.microbatch_tokens,
            adapters=[adapter] if adapter is not None else [],
            trust_remote_code=trust_remote_code,
        )

    def _student(self, folder: str) -> _Student:
        recipe, code = self._recipe, self._resolved.models["student.model"].trusted
        model = self._model(folder, self._resolved.device, self._resolved.dtype, None, trust_remote_code=code)
        tokenizer = load_tokenizer(folder, trust_remote_code=code)
        tasks = tasks_of(recipe.domains, tokenizer)
        source = prompt_source(recipe.trained_domains, tasks, tokenizer, seed=recipe.seed)
        asked = {name: [p for p in source(0) if p.domain == name][:ROLLOUTS] for name in recipe.trained_domains}
        with ExitStack() as closing:
            samplers = self._samplers(folder, tokenizer, closing)
            samplers.train.load_weights(InProcess(model.model), version=0)
            samplers.evaluate.load_weights(InProcess(model.model), version=0)
            rollouts = {
                name: [rollout for microbatch in samplers.train.sample(prompts, step=0) for rollout in microbatch]
                for name, prompts in asked.items()
            }
            correct = self._exam(samplers.evaluate, tokenizer)
        logprobs = {name: _full(model, written, None) for name, written in rollouts.items()}
        return _Student(folder, tokenizer, rollouts, logprobs, correct)

    def _samplers(self, student: str, tokenizer: PreTrainedTokenizerBase, closing: ExitStack) -> Samplers:
        """What samples student and teachers, one completion a prompt, in this process where the engine can."""
        recipe = self._recipe
        settings = sampler_settings(recipe.rollout, tokenizer, seed=recipe.seed, support=support_of(recipe, tokenizer))
        here = SamplerProcesses(0, self._resolved.device, self._resolved.dtype)
        return make_samplers(
            engine_of(recipe.rollout.engine, workers=0),
            settings=replace(settings, samples_per_prompt=1),
            student=StudentModel(FrozenModel(student, trust_remote_code=recipe.student.trust_remote_code), here),
            frozen=here,
            closing=closing,
        )

    def _exam(self, sampler: Sampler, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Verdicts on greedy answers to the validation prompts, by prompt id."""
        recipe = self._recipe
        tasks = tasks_of(recipe.domains, tokenizer)
        settings = recipe.evaluate
        rows = evaluate(
            sampler,
            prompt_source(recipe.trained_domains, tasks, tokenizer, seed=recipe.seed).held_out(
                "validation", settings.validation_prompts, seed=settings.seed
            ),
            lambda prompts, texts: verify(tasks, prompts, texts),
            lambda rollout: completion_text(tokenizer, rollout),
            0,
            model="",  # the rows are not kept
            split="validation",
        )
        return {f"{row.domain}/{row.prompt_id}": row.correct for row in rows}

    def _teacher(self, name: str, folder: str, domains: Sequence[str], student: _Student) -> list[Finding]:
        teacher = self._resolved.teachers[name]
        adapter, code = teacher.adapter, teacher.model.trusted
        model = self._model(folder, teacher.device, teacher.dtype, adapter, trust_remote_code=code)
        with active(model.model, adapter):
            anchor = teacher.is_self and adapter is None
            correct = {} if anchor else self._answers(FrozenModel(folder, adapter, code), student, model.model)
        found = []
        for domain in domains:
            rollouts = student.rollouts[domain]
            scored = _full(model, rollouts, adapter)
            problem = self_test(model, rollouts, scored, adapter)
            if problem is not None:
                remedy = "score in float32 (`dtype`), on a machine whose kernels repeat, or take another teacher"
                found.append(Finding(name, domain, "unusable", problem, remedy))
                continue
            kl = reverse_kl(student.logprobs[domain], scored, rollouts)
            ours = {key: value for key, value in student.correct.items() if key.startswith(f"{domain}/")}
            found.append(judge(name, domain, kl, [ours[k] for k in ours], [correct[k] for k in ours if correct]))
        return found

    def _answers(self, teacher: FrozenModel, student: _Student, module: nn.Module | None) -> dict[str, float]:
        """Verdicts on what a teacher writes, by prompt id; ``module`` is the teacher, where it is loaded already."""
        with ExitStack() as closing:
            sampler = self._samplers(student.folder, student.tokenizer, closing).of(teacher, module=module)
            return self._exam(sampler, student.tokenizer)

    def _only_scoring(self, name: str, folder: str, domains: Sequence[str], student: _Student) -> list[Finding]:
        """Of a teacher behind a server or of a user's own, which need tell no distribution: as a run asks it."""
        own = self._recipe.teachers[name].scorer is not None
        try:
            correct, trials = self._tried(name, folder, domains, student)
        except UserError:
            raise
        except Exception as error:
            if not own and not isinstance(error, RunError):
                raise
            told = str(error) if isinstance(error, RunError) else f"it raises {type(error).__name__}: {error}"
            return [unanswering(name, domain, told) for domain in domains]
        found = []
        for domain in domains:
            ours = {key: value for key, value in student.correct.items() if key.startswith(f"{domain}/")}
            verdicts = [*ours.values()], None if correct is None else [correct[key] for key in ours]
            tolerance = TOLERANCE[self._resolved.teachers[name].dtype]
            found.append(conclude(name, domain, trials[domain], student.rollouts[domain], tolerance, *verdicts))
        return found

    def _tried(
        self, name: str, folder: str, domains: Sequence[str], student: _Student
    ) -> tuple[dict[str, float] | None, dict[str, DryRun]]:
        """Its verdicts by prompt id, where it writes, and its trial on each domain.

        Raises:
            RunError: it does not answer, or with something else than it was asked; what a user's class raises, too.
        """
        recipe, teacher = self._recipe, self._resolved.teachers[name]
        support = support_of(recipe, student.tokenizer)
        conditions = Conditions(recipe.rollout.temperature, recipe.student.engine.microbatch_tokens, support)
        correct: dict[str, float] | None = None
        if teacher.settings.scorer is not None:
            model: Scorer = CustomSource.of(teacher.settings.scorer, folder, teacher.device, teacher.dtype).open(
                conditions, []
            )
        else:
            seconds, code = recipe.faults.microbatch_seconds, teacher.model.trusted
            model = served_source(name, teacher.settings, folder, seconds, trust_remote_code=code).open(conditions, [])
            correct = self._answers(frozen_teacher(teacher, folder, recipe.faults), student, None)
        expected = Expected(asked_in_trial(bind(recipe.loss).payload), model.vocabulary, support)

        def ask(token_ids: Sequence[Int32], given: Sequence[Int32] | None) -> list[list[Payload]]:
            return [model.score(token_ids, expected.payload, None, given) for _ in range(2)]

        tokens, reference = conditions.microbatch_tokens, partial(reference_of, model)
        return correct, {
            domain: dry_run(name, ask, student.rollouts[domain], expected, tokens=tokens, reference=reference)
            for domain in domains
        }


def self_test(
    model: TeacherModel, rollouts: Sequence[Rollout], scored: Sequence[Float32], adapter: str | None
) -> str | None:
    """What is wrong with a teacher's scores: asked twice, and beside its own forward of one rollout without padding."""
    for first, second in zip(scored, _full(model, rollouts, adapter), strict=True):
        if not np.array_equal(first, second, equal_nan=True):
            return f"asked twice, it scores the same tokens {np.abs(first - second).max():.2g} nats apart"
    rollout, mine_TV = rollouts[0], scored[0]
    expected_TV = model.reference(rollout.token_ids, adapter)
    apart = float(np.abs(expected_TV - mine_TV)[rollout.loss_mask].max())
    if not apart <= TOLERANCE[model.dtype]:
        return f"its scores are {apart:.2g} nats from its own distribution at temperature {model.temperature:g}"
    return None


def _full(model: TeacherModel, rollouts: Sequence[Rollout], adapter: str | None) -> list[Float32]:
    payloads = model.score([rollout.token_ids for rollout in rollouts], "full", adapter)
    return [payload.logprobs_TV for payload in payloads if isinstance(payload, Full)]

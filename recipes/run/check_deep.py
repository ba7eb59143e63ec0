"""`mopd check --deep`: starts student and teachers, one at a time, and asks of each teacher whether it can teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import bind
from mopd.distill.metrics.evaluate import evaluate
from mopd.distill.models.adapters import active
from mopd.distill.recipe import Architecture
from mopd.distill.types import Float32, Full, Int32, Payload, Rollout, RunError, Sampler, UserError
from mopd.recipes.check.served import served_sampler, served_source
from mopd.recipes.evaluation.evaluator import verify
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.methods import decoding, support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import Source, stage_name
from mopd.recipes.resolve.stages import model_path
from mopd.recipes.resolve.teachers import Device
from mopd.recipes.run.findings import ROLLOUTS, Finding, judge, reverse_kl, unanswering
from mopd.recipes.run.job import prompt_source, tasks_of
from mopd.recipes.run.launch import on_disk
from mopd.recipes.run.preflight import conclude
from mopd.rollouts.sampler import InProcess, StudentSampler
from mopd.rollouts.tokenizer import completion_text
from mopd.teachers.dry_run import DryRun, asked_in_trial, dry_run, reference_of
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.kinds.custom import CustomSource
from mopd.teachers.scorer import TOLERANCE, Conditions, Scorer
from mopd.teachers.validate import Expected


@dataclass(frozen=True, slots=True)
class _Student:
    """The student before the first step: its rollouts by domain, their distributions, its answers by prompt id."""

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
        source = prompt_source(recipe, tasks_of(recipe, tokenizer), tokenizer, held_out=False)
        asked = {name: [p for p in source(0) if p.domain == name][:ROLLOUTS] for name in recipe.trained_domains}
        sampler = StudentSampler(
            decoding(recipe, tokenizer), samples_per_prompt=1, batch_size=recipe.rollout.batch_size
        )
        sampler.load_weights(InProcess(model.model), version=0)
        rollouts = {
            name: [rollout for microbatch in sampler.sample(prompts, step=0) for rollout in microbatch]
            for name, prompts in asked.items()
        }
        logprobs = {name: _full(model, mine, None) for name, mine in rollouts.items()}
        return _Student(tokenizer, rollouts, logprobs, self._exam(self._writing(model.model, tokenizer), tokenizer))

    def _writing(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Sampler:
        how = replace(decoding(self._recipe, tokenizer), greedy=True)
        sampler = StudentSampler(how, samples_per_prompt=1, batch_size=self._recipe.rollout.batch_size)
        sampler.load_weights(InProcess(model), version=0)
        return sampler

    def _exam(self, sampler: Sampler, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Verdicts on greedy answers to the validation prompts, by prompt id."""
        recipe = self._recipe
        tasks = tasks_of(recipe, tokenizer)
        settings = recipe.evaluate
        rows = evaluate(
            sampler,
            prompt_source(recipe, tasks, tokenizer, held_out=False).held_out(
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
            correct = {} if anchor else self._exam(self._writing(model.model, student.tokenizer), student.tokenizer)
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
            correct = self._exam(served_sampler(recipe, name, student.tokenizer), student.tokenizer)
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

"""`mopd check --deep`: opens the student and one teacher after the other here, and asks what a run asks of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.metrics.evaluate import evaluate
from mopd.distill.recipe import Architecture, Engine, ModelReference, RolloutRecipe
from mopd.distill.recipe.model_names import PREFIX, stage_name
from mopd.distill.types import GradingFailed, Payload, PayloadName, Prompt, Rollout, RunError, Sampler, UserError
from mopd.recipes.evaluation.evaluator import by_question, verify
from mopd.recipes.evaluation.own_tokens import InOwnTokens
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import model_path
from mopd.recipes.resolve.teacher_prompts import (
    OwnTokenizer,
    own_tokenizers,
    prompts_in,
    retokenizers_of,
    teacher_reads,
)
from mopd.recipes.resolve.teachers import ResolvedTeacher, with_folders
from mopd.recipes.run.launch import on_disk
from mopd.recipes.run.preflight import (
    Candidate,
    Finding,
    candidates,
    examine,
    sample_rollouts,
    unanswering,
    verdicts_of,
)
from mopd.recipes.run.samplers import frozen_teacher
from mopd.rollouts.engines import engine_of
from mopd.rollouts.engines.base import FrozenModel, RolloutEngine, SamplerProcesses, SamplerSettings
from mopd.rollouts.environments.episodes import with_episodes
from mopd.rollouts.sampler import Episodes, make_samplers, sampler_settings
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import completion_text, end_token_ids, token_count
from mopd.teachers.dry_run import DryRun, dry_run, dry_run_payload, reference_of
from mopd.teachers.kinds import TeacherSetup, make_source
from mopd.teachers.retokenized import Retokenizer
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import Expected
from mopd.teachers.views import Reads, ScoreRequest, score_views


@dataclass(frozen=True, slots=True)
class _Validation:
    """The validation prompts by domain, and how answers to them are verified."""

    prompts: Mapping[str, Sequence[Prompt]]
    tasks: Mapping[str, Task]
    tokenizer: PreTrainedTokenizerBase

    def verdicts(self, model: str, sampler: Sampler) -> dict[str, list[float]]:
        """Of a model's greedy answers, by domain; see :data:`recipes.run.preflight.ByDomain`."""
        asked = by_question(self.prompts)
        tokenizer = sampler.tokenizer if isinstance(sampler, InOwnTokens) else self.tokenizer
        rows = evaluate(
            sampler,
            self.prompts,
            lambda prompts, texts: verify(self.tasks, [asked[prompt.domain, prompt.id] for prompt in prompts], texts),
            lambda rollout: completion_text(tokenizer, rollout),
            0,
            model=model,
            split="validation",
        )
        return verdicts_of(rows, model)


def deep_findings(resolved: Resolved, out: Path) -> list[Finding]:
    """A finding for every teacher and domain that it grades, of a recipe that passed the static check.

    Args:
        out: the run's folder, whose stages may be there.
    """
    recipe, out = resolved.recipe, Path(os.path.realpath(out))
    teachers = with_folders(resolved.teachers, out)
    to_examine = candidates(teachers, recipe.trained_domains)
    start = _folder(recipe.student.reference, out)
    if start is None:
        return [finding for candidate in to_examine for finding in _later(candidate, recipe.student.reference)]
    findings: list[Finding] = []
    there: list[tuple[Candidate, str]] = []
    for candidate in to_examine:
        folder, lacking = _lies_in(teachers[candidate.name], out)
        if folder is None:
            findings += _later(candidate, lacking)
        else:
            there.append((candidate, folder))
    if not there:  # nobody is to be asked, so nothing has to be written
        return findings
    trust = resolved.models["student.model"].trusted
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    tasks = tasks_of(recipe.domains, tokenizer)
    source = prompt_source(recipe.trained_domains, tasks, tokenizer, seed=recipe.seed)
    n, seed = recipe.evaluate.validation_prompts, recipe.evaluate.seed
    validation = _Validation(source.held_out("validation", n, seed=seed), tasks, tokenizer)
    support = support_of(resolved.loss, tokenizer)
    settings = sampler_settings(recipe.rollout, tokenizer, model=start, seed=recipe.seed, support=support)
    engine = engine_of(recipe.rollout.engine, workers=0).bound(
        recipe.rollout, faults=recipe.faults, folder=None, say=print
    )
    episodes = partial(with_episodes, tasks=tasks, tokenizer=tokenizer)
    with _one_model(engine, settings, resolved.device, resolved.dtype, episodes) as sampler_of:
        sampler = sampler_of(FrozenModel(start, trust_remote_code=trust))
        rollouts = sample_rollouts(sampler, source(0), [candidate for candidate, _ in there])
        student = validation.verdicts("base", sampler)
        del sampler
    end_tokens = end_token_ids(tokenizer, start)
    trials = _Trials(
        *(recipe.rollout, recipe.seed, recipe.student.engine, resolved.loss),
        *(tasks, OwnTokenizer(tokenizer, end_tokens), validation, engine, settings, episodes),
        reads=teacher_reads(resolved.teachers, tasks, tokenizer),
    )
    for candidate, folder in there:
        name = candidate.name
        teacher = teachers[name]
        try:
            trial, verdicts = trials.of(candidate, teacher, folder)
        except RunError as error:
            findings += [unanswering(name, domain, str(error)) for domain in candidate.domains]
            continue
        findings += examine(candidate, trial, rollouts, student=student, teacher=verdicts)
    return findings


def _lies_in(teacher: ResolvedTeacher, out: Path) -> tuple[str | None, ModelReference]:
    """Where a teacher's model lies, and the model; None, and what a run has yet to make, where it cannot be asked."""
    made = stage_name(teacher.settings.adapter)
    if made is not None and not Path(teacher.adapter or "").is_dir():
        return None, f"{PREFIX}{made}"
    return _folder(teacher.model.source, out, weights=teacher.kind.has_weights), teacher.model.source


@dataclass(frozen=True, slots=True)
class _Trials:
    """What teachers are tried with, one after the other.

    Attributes:
        learning: how the student learns, of which scoring has its forwards.
        student: its tokenizer.
        settings: how it writes.
        reads: what teachers read that have a prompt of their own and the student's tokens, by name.
    """

    rollout: RolloutRecipe
    seed: int
    learning: Engine
    loss: BoundLoss
    tasks: Mapping[str, Task]
    student: OwnTokenizer
    validation: _Validation
    engine: RolloutEngine
    settings: SamplerSettings
    episodes: Episodes
    reads: Mapping[str, Reads]

    def of(
        self, candidate: Candidate, teacher: ResolvedTeacher, folder: str
    ) -> tuple[Callable[[Sequence[Rollout]], DryRun], dict[str, list[float]]]:
        """What has a teacher score rollouts twice, and its verdicts on the validation prompts, if it is asked.

        Raises:
            RunError: it cannot be opened, or does not answer.
        """
        name, verdicts = teacher.name, dict[str, list[float]]()
        teachers = {name: teacher}
        own = own_tokenizers(teachers, {name: folder})
        tokenizer = own[name].tokenizer if own else self.student.tokenizer
        if candidate.can_write and not candidate.is_student:
            settings = self.settings
            if own:
                settings = sampler_settings(self.rollout, tokenizer, model=folder, seed=self.seed, support=None)
            with _one_model(self.engine, settings, teacher.device, teacher.dtype, self.episodes) as sampler_of:
                sampler = sampler_of(frozen_teacher(teacher, folder))
                if own:
                    sampler = InOwnTokens(sampler, prompts_in(name, tokenizer, self.tasks), tokenizer)
                verdicts = self.validation.verdicts(f"teachers/{name}", sampler)
        support, vocabulary = support_of(self.loss, tokenizer), token_count(tokenizer)
        how = self.learning
        packing = how.packing and teacher.kind.packs
        conditions = Conditions(self.rollout.temperature, how.microbatch_tokens, support, vocabulary, packing=packing)
        retokenizers = retokenizers_of(teachers, own, self.tasks, self.student, self.loss)
        payload = dry_run_payload(self.loss.payload)
        trial = _open(teacher.setup(folder), conditions, payload, self.reads.get(name), retokenizers.get(name))
        return trial, verdicts


def _folder(source: ModelReference, out: Path, *, weights: bool = True) -> str | None:
    """Where a model lies; None where a run has yet to make it."""
    path = model_path(source, out=out, folder=out)
    if isinstance(source, Architecture) or stage_name(source) is not None:
        return path if Path(path).is_dir() else None
    return on_disk(path, weights=weights)


def _later(candidate: Candidate, source: ModelReference) -> list[Finding]:
    """Of a teacher that cannot be asked until ``source`` was made."""
    made = source.architecture if isinstance(source, Architecture) else source
    remedy = "a run asks it then, before its first step"
    return [Finding(candidate.name, domain, "later", f"after {made}", remedy) for domain in candidate.domains]


@contextmanager
def _one_model(
    engine: RolloutEngine, settings: SamplerSettings, device: str, dtype: str, episodes: Episodes
) -> Iterator[Callable[[FrozenModel], Sampler]]:
    """What samples a frozen model, one completion a prompt, in this process where the engine can; it is gone then."""
    with ExitStack() as closing:
        here = SamplerProcesses(0, device, dtype)
        yield make_samplers(
            engine,
            settings=settings,
            frozen=here,
            measured_support=settings.decoding.support,
            closing=closing,
            episodes=episodes,
        ).of


def _open(
    setup: TeacherSetup,
    conditions: Conditions,
    payload: PayloadName,
    reads: Reads | None,
    retokenizer: Retokenizer | None,
) -> Callable[[Sequence[Rollout]], DryRun]:
    """Open a teacher in this process; returns what has it scored twice. ``reads``: in the place of a prompt.

    Raises:
        RunError: it cannot be opened.
    """
    adapters = [] if setup.adapter is None else [setup.adapter]
    with _named_failures():
        scorer = make_source(setup).open(conditions, adapters)
        expected = Expected(payload, scorer.vocabulary, conditions.support)

    def ask(request: ScoreRequest) -> list[list[Payload]]:
        with _named_failures():
            return [score_views(scorer, request, setup.adapter) for _ in range(2)]

    return partial(
        dry_run,
        setup.name,
        ask,
        expected=expected,
        tokens=conditions.microbatch_tokens,
        reference=partial(reference_of, scorer, adapter=setup.adapter),
        reads=reads,
        retokenizer=retokenizer,
    )


@contextmanager
def _named_failures() -> Iterator[None]:
    """What a teacher's code raises ends the check of this teacher alone, as it would end a run.

    Raises:
        GradingFailed: it raised something; what it says to a user goes on as it is.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        raise GradingFailed(f"it raises {type(error).__name__}: {error}") from error

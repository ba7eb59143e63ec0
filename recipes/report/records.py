"""What the files of a run's folder hold, as dataclasses, whatever version of mopd wrote them.

:func:`read_recipe` reads recipe.yaml, :func:`read_seesaw` seesaw.json, :func:`read_environment` environment.json; rows
of metrics.jsonl, rollouts.jsonl and preflight.json have their classes here and are read by recipes/report/data.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from mopd.distill.errors import RunError, UserError
from mopd.distill.metrics.episodes import MeasuredEpisodes, read_episodes
from mopd.distill.metrics.evaluate import Split
from mopd.distill.metrics.power import Verdict
from mopd.distill.metrics.quotients import Ends
from mopd.distill.metrics.results import CurvePoint, UnjudgedAnswers
from mopd.distill.metrics.selection import Selected
from mopd.distill.recipe.model_names import stage_name
from mopd.recipes.resolve.run_folder import RECIPE

PerDomain: TypeAlias = Mapping[str, float | None]
"""One number a domain; None where it is undefined."""


@dataclass(frozen=True, slots=True)
class RecordedDomain:
    """A domain of a recorded recipe.

    Attributes:
        task: name of a shipped task, a path, or the settings of a dataset.
        teachers: weights of its teachers by name, which sum to 1; empty where it has none.
        prompts: a step.
    """

    task: str | Mapping[str, Any]
    teachers: Mapping[str, float]
    evaluate_only: bool
    prompts: int | None
    share: float | None


@dataclass(frozen=True, slots=True)
class RecordedTeacher:
    """A teacher of a recorded recipe.

    Attributes:
        model: as :attr:`RecordedStage.start`, or ``self``.
        adapter: that lies on the model, if any.
        scorer: the user's own class that scores, if any.
        kind: the user's own kind of teacher, ``./file.py:NAME``, if it is one.
    """

    model: object
    adapter: object
    scorer: object
    kind: str


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage of a recorded recipe.

    Attributes:
        start: what it is made from: ``stage:NAME``, a path, a Hub id, or a mapping for an architecture from scratch.
        domains: that it trains on; empty for all.
    """

    start: object
    steps: int
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordedRecipe:
    """What is read of the recipe.yaml in a run's folder, in which every leaf is written out.

    It is no ``Recipe``: a folder that another version wrote can still be reported and compared.

    Attributes:
        steps: of the run itself, or the most where ``may_end_sooner``: at a plateau, or with its compute.
        trials: settings tried before these were chosen.
        domains: in the recipe's order.
        student_model: what the student starts from; as :attr:`RecordedStage.start`.
        evaluate_seed: of the questions.
        prompts: questions of a domain, by split.
        tree: the whole recipe as plain values.
    """

    name: str
    description: str
    seed: int
    method: str
    steps: int
    may_end_sooner: bool
    trials: int
    domains: Mapping[str, RecordedDomain]
    teachers: Mapping[str, RecordedTeacher]
    student_model: object
    stages: Mapping[str, RecordedStage]
    evaluate_seed: int
    prompts: Mapping[Split, int]
    tree: Mapping[str, Any]

    @property
    def teacher_weights(self) -> dict[str, Mapping[str, float]]:
        """Domain -> its teachers with their weights; empty where it has none."""
        return {name: domain.teachers for name, domain in self.domains.items()}

    def origin(self, source: object) -> object:
        """What a model was made from in the end: never a declared stage."""
        seen: set[str] = set()
        while (name := stage_name(source)) is not None and name in self.stages and name not in seen:
            seen.add(name)
            source = self.stages[name].start
        return source


def read_recipe(tree: Mapping[str, Any]) -> RecordedRecipe:
    """The recipe of a run, from the plain values of its recipe.yaml.

    Raises:
        KeyError: the name of a key that every run's recipe has, and this one lacks.
    """
    evaluate = tree["evaluate"]
    return RecordedRecipe(
        name=str(tree["name"]),
        description=tree.get("description") or "",
        seed=tree["seed"],
        method=tree["method"],
        steps=int(tree["run"]["steps"]),
        may_end_sooner=any(tree["run"].get(rule) is not None for rule in ("plateau", "compute")),
        trials=int(tree.get("trials", 0)),
        domains={name: _domain(settings) for name, settings in tree["domains"].items()},
        teachers={
            name: RecordedTeacher(
                model=settings.get("model"),
                adapter=settings.get("adapter"),
                scorer=settings.get("scorer"),
                kind=settings.get("kind") or "",
            )
            for name, settings in (tree.get("teachers") or {}).items()
        },
        student_model=tree["student"]["model"],
        stages={
            name: RecordedStage(settings["from"], int(settings["steps"]), tuple(settings.get("domains") or ()))
            for name, settings in (tree.get("stages") or {}).items()
        },
        evaluate_seed=evaluate["seed"],
        prompts={"validation": evaluate["validation_prompts"], "test": evaluate["test_prompts"]},
        tree=tree,
    )


def _domain(settings: Mapping[str, Any]) -> RecordedDomain:
    teacher = settings.get("teacher")
    return RecordedDomain(
        task=settings["task"],
        teachers={teacher: 1.0} if teacher is not None else dict(settings.get("teachers") or {}),
        evaluate_only=bool(settings.get("evaluate_only")),
        prompts=settings.get("prompts"),
        share=settings.get("share"),
    )


@dataclass(frozen=True, slots=True)
class DomainScore:
    """A model's score on a domain, a fraction, over ``n`` questions; without interval where it is a weighted mean."""

    score: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class SeesawMetrics:
    """The ``metrics`` of seesaw.json; None where undefined, and throughout while nothing can be measured."""

    points: PerDomain | None
    recovery: PerDomain | None
    mean_recovery: float | None
    worst_recovery: float | None
    imbalance: float | None
    max_regression: float | None
    pareto_gap: float | None
    forgetting: PerDomain | None
    seesaw_share: float | None
    seesaw_noise: float | None
    seesaw_correlation: float | None
    seesaw_correlation_p: float | None
    pooled_recovery: float | None
    worst_recovery_estimate: float | None
    imbalance_estimate: float | None
    max_regression_estimate: float | None
    pareto_gap_estimate: float | None
    forgetting_estimate: PerDomain | None


@dataclass(frozen=True, slots=True)
class SeesawIntervals:
    """The ``metrics_ci`` of seesaw.json: 95% intervals; None where the metric is undefined.

    Attributes:
        teacher_points: teacher -> domain -> of its change over the base.
    """

    points: Mapping[str, Ends | None] | None
    recovery: Mapping[str, Ends | None] | None
    mean_recovery: Ends | None
    worst_recovery: Ends | None
    imbalance: Ends | None
    max_regression: Ends | None
    pareto_gap: Ends | None
    points_at_once: Mapping[str, Ends | None] | None
    pooled_recovery: Ends | None
    forgetting: Mapping[str, Ends | None] | None
    teacher_points: Mapping[str, Mapping[str, Ends]] | None


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """That a run ended by its stop rule: after which step, and why."""

    step: int
    why: str


Models: TypeAlias = Mapping[str, Mapping[str, DomainScore]]
"""``base``, ``teachers/NAME`` and ``student`` -> domain -> score."""


@dataclass(frozen=True, slots=True)
class SeesawRecord:
    """The content of seesaw.json; see distill/metrics/results.py, which makes it.

    Attributes:
        fingerprints: of the domains' tasks.
        teachers: domain -> its teachers' weights.
        split: where the models' scores and the metrics come from.
        curve: the student's scores on validation over steps.
        selected: which step's weights are the result; None if that is not written down.
        stopped: None where the run went to its last step.
        verdict: whether the worst domain keeps enough; None where there is no recovery, or that is not written down.
        sampled: scores of sampled answers; empty where none were.
        unjudged: answers that no verifier looked at, by model and domain; empty where there were none.
        episodes: how episodes of environments went, by model and domain; empty where there were none.
    """

    domains: Sequence[str]
    fingerprints: Mapping[str, str]
    teachers: Mapping[str, Mapping[str, float]]
    split: Split
    models: Models
    curve: Sequence[CurvePoint]
    metrics: SeesawMetrics
    intervals: SeesawIntervals
    selected: Selected | None
    stopped: EarlyEnd | None
    verdict: Verdict | None = None
    sampled: Models = field(default_factory=dict)
    unjudged: Mapping[str, Mapping[str, UnjudgedAnswers]] = field(default_factory=dict)
    episodes: Mapping[str, Mapping[str, MeasuredEpisodes]] = field(default_factory=dict)

    def own_teacher(self, domain: str) -> DomainScore | None:
        """See :func:`own_teacher`."""
        return own_teacher(self.models, self.teachers, domain)


def read_seesaw(record: Mapping[str, Any]) -> SeesawRecord:
    """A run's result from the content of its seesaw.json; keys that an older version did not write are None."""
    selected, stopped, judged = record.get("selected"), record.get("stopped"), record.get("verdict")
    metrics, intervals = record["metrics"], record["metrics_ci"]
    return SeesawRecord(
        domains=record["domains"],
        fingerprints={domain: task["fingerprint"] for domain, task in record.get("tasks", {}).items()},
        teachers=record["teachers"],
        split=record.get("split", "test"),
        models={
            model: {domain: DomainScore(**score) for domain, score in scores.items()}
            for model, scores in record["models"].items()
        },
        curve=[CurvePoint(**point) for point in record["curve"]],
        metrics=SeesawMetrics(**{each.name: metrics.get(each.name) for each in fields(SeesawMetrics)}),
        intervals=SeesawIntervals(**{each.name: as_ends(intervals.get(each.name)) for each in fields(SeesawIntervals)}),
        selected=None if selected is None else Selected(**selected),
        stopped=None if stopped is None else EarlyEnd(**stopped),
        verdict=None if judged is None else Verdict(**judged),
        sampled={
            model: {domain: DomainScore(**score) for domain, score in scores.items()}
            for model, scores in record.get("sampled", {}).items()
        },
        unjudged={
            model: {domain: UnjudgedAnswers(**answers) for domain, answers in by_domain.items()}
            for model, by_domain in record.get("unjudged", {}).items()
        },
        episodes={
            model: {domain: read_episodes(measured) for domain, measured in by_domain.items()}
            for model, by_domain in record.get("episodes", {}).items()
        },
    )


def as_ends(interval: Any) -> Any:
    """``[low, high]`` as :class:`Ends`, or one of these a domain; None stays None."""
    if isinstance(interval, Mapping):
        return {domain: as_ends(ends) for domain, ends in interval.items()}
    return None if interval is None else Ends(*interval)


def own_teacher(models: Models, teachers: Mapping[str, Mapping[str, float]], domain: str) -> DomainScore | None:
    """A domain's own teacher: its score with interval, or the weighted mean without one where it has several.

    None where the domain has no teacher, or one that was not measured.
    """
    weights = teachers[domain]
    scores = [models.get(f"teachers/{name}", {}).get(domain) for name in weights]
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    if len(known) == 1:
        return known[0]
    mean = sum(weight * score.score for weight, score in zip(weights.values(), known, strict=True))
    return DomainScore(mean, None, None, known[0].n)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a row of metrics.jsonl holds of one step: numbers by name, None for what was not finite."""

    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SampledRollout:
    """A row of rollouts.jsonl: what the student wrote at a step.

    Attributes:
        tokens: the completion's, each as text.
        advantages: of the tokens, in nats; empty where they were not kept.
        verdict: the verifier's score, 0..1.
    """

    step: int
    domain: str
    prompt: str
    tokens: Sequence[str]
    advantages: Sequence[float]
    verdict: float


@dataclass(frozen=True, slots=True)
class TeacherFinding:
    """A row of preflight.json: whether a teacher can teach a domain, why not, and what to do."""

    teacher: str
    domain: str
    verdict: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class RunEnvironment:
    """The content of environment.json: the code's commit, versions of Python and packages, the machine."""

    commit: str | None
    python: str | None
    packages: Mapping[str, Any]
    machine: Mapping[str, Any]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Whatever a damaged file raises becomes a UserError that names the folder: to read it spends nothing."""
    try:
        yield
    except RunError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} is damaged, or was not made by this version of mopd ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def recipe_tree(folder: Path) -> Any:
    """What a run's recipe.yaml holds.

    Raises:
        UserError: there is no run in ``folder``.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} holds no run: it has no {RECIPE}; give the folder of a run, such as runs/NAME")
    return yaml.safe_load(path.read_text())


def recorded_recipe(folder: Path) -> RecordedRecipe:
    """The recipe of the run in ``folder``.

    Raises:
        UserError: there is none.
    """
    return read_recipe(recipe_tree(folder))


def read_environment(folder: Path) -> RunEnvironment | None:
    """What a run's folder says of the code and the machine; None where it says nothing."""
    record = read_json(folder / "environment.json")
    if not record:
        return None
    packages, machine = record.get("packages") or {}, record.get("machine") or {}
    return RunEnvironment(record.get("commit"), record.get("python"), packages, machine)


def steps_of(rows: Sequence[Mapping[str, Any]], kind: str) -> list[StepMetrics]:
    """The rows of metrics.jsonl of one kind, ``train`` or ``eval``."""
    return [
        StepMetrics(row["step"], {name: value for name, value in row.items() if name not in ("step", "kind")})
        for row in rows
        if row.get("kind") == kind
    ]


def read_rollout(row: Mapping[str, Any]) -> SampledRollout:
    """A row of rollouts.jsonl."""
    return SampledRollout(
        step=row["step"],
        domain=row["domain"],
        prompt=row["prompt"],
        tokens=row["tokens"],
        advantages=row.get("advantages") or [],
        verdict=row["verdict"],
    )

"""The model card of an exported student: where it comes from, what it was taught, and the seesaw table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.metrics.results import build_seesaw
from mopd.distill.recipe.model_names import is_hub_id, is_path
from mopd.recipes.report.charts import seesaw_chart
from mopd.recipes.report.drawing import Picture
from mopd.recipes.report.records import DomainScore, RecordedRecipe, SeesawRecord, read_seesaw, recorded_recipe
from mopd.recipes.report.scores import change_bars
from mopd.recipes.report.wording import between, percent

SETTINGS = ("method", "seed", "loss.estimator", "run.steps", "rollout.max_new_tokens", "student.optimizer.lr")
"""The leaves that the card tells; the run's folder has the whole recipe."""


CARD, PICTURE = "README.md", "seesaw.png"
"""Names of the card and of its picture beside the weights; the Hub shows the first, and in it the second."""


def run_card(folder: Path, answers: Sequence[Evaluation], *, left_out: Sequence[str] = ()) -> dict[str, bytes]:
    """The card of the student of a run, of what its folder and its answers say, and its picture: files by name.

    Args:
        folder: the run's, with recipe.yaml.
        answers: of base, teachers and student to the test questions.
        left_out: names of weights that the student's source has and the student has not.
    """
    recipe = recorded_recipe(folder)
    unknown = dict.fromkeys(recipe.domains, "")
    seesaw = read_seesaw(build_seesaw(answers, teachers=recipe.teacher_weights, fingerprints=unknown))
    picture = seesaw_picture(recipe, seesaw)
    files = {CARD: model_card(recipe, seesaw, left_out, picture).encode()}
    return files if picture is None else {**files, PICTURE: picture.png()}


def seesaw_picture(recipe: RecordedRecipe, seesaw: SeesawRecord) -> Picture | None:
    """What every teacher and the student gained and lost on every domain; None where the base was not measured."""
    models = change_bars(seesaw, {domain: i for i, domain in enumerate(seesaw.domains)})
    named = [replace(each, model=each.model if each.model == "student" else f"teacher {each.model}") for each in models]
    return seesaw_chart(named, title=f"{recipe.name}: change against the base, in points") if named else None


def model_card(recipe: RecordedRecipe, seesaw: SeesawRecord, left_out: Sequence[str], picture: Picture | None) -> str:
    """The card as text: a header of YAML for the Hub, and Markdown for people, with ``picture`` as a file beside it."""
    teachers = {
        name: _code(str(teacher.model)) + (f", with adapter {_code(str(teacher.adapter))}" if teacher.adapter else "")
        for name, teacher in recipe.teachers.items()
    }
    sources = [recipe.student_model, *(teacher.model for teacher in recipe.teachers.values())]
    tasks = [domain.task for domain in recipe.domains.values()]
    paths = [str(task["path"]) for task in tasks if isinstance(task, Mapping) and "path" in task]
    data = ModelCardData(
        base_model=list(dict.fromkeys(_of_hub(map(recipe.origin, sources)))) or None,  # type: ignore[arg-type]
        datasets=list(dict.fromkeys(path for path in paths if not is_path(path))) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mopd", "distillation", "on-policy-distillation"],
        model_name=recipe.name,
        eval_results=list(_results(recipe, seesaw)) or None,
    )
    parts = [
        f"# {recipe.name}",
        "A student of several specialists, made by multi-teacher on-policy distillation "
        f"([arXiv 2606.30406](https://arxiv.org/abs/2606.30406)). It starts from "
        f"{_code(_named(recipe.student_model))}.",
        "## Teachers",
        "\n".join(f"- **{name}**: {model}" for name, model in teachers.items()) or "None.",
        "## The seesaw",
        *([] if picture is None else [f"![Bars; their numbers: {_in_words(picture)}]({PICTURE})"]),
        _table(seesaw),
        "Recovery is the part of the teacher's gain over the base that the student has. Scores are of greedy answers "
        f"to {seesaw.split} questions, with 95% intervals; they say nothing of what was not asked.",
        *_left_out(left_out),
        "## Recipe",
        "\n".join(f"- `{leaf}`: {value}" for leaf in SETTINGS if (value := _leaf(recipe.tree, leaf)) is not None),
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _in_words(picture: Picture) -> str:
    """The numbers of the picture, in points, for who does not see it."""
    by_model: dict[str, list[str]] = {}
    for model, domain, change, _ in picture.rows:
        by_model.setdefault(model, []).append(f"{domain} {change}")
    return "; ".join(f"{model} {', '.join(changes)}" for model, changes in by_model.items())


def _results(recipe: RecordedRecipe, seesaw: SeesawRecord) -> Iterator[EvalResult]:
    """The student's score in each domain, as the Hub's index of models has it: a part of 1."""
    for domain in seesaw.domains:
        if (score := seesaw.models.get("student", {}).get(domain)) is None:
            continue
        asked = recipe.domains[domain].task if domain in recipe.domains else domain
        source = asked.get("path", domain) if isinstance(asked, Mapping) else asked
        yield EvalResult(
            task_type="text-generation",
            dataset_type=domain if is_path(str(source)) else str(source),
            dataset_name=domain,
            dataset_split=seesaw.split,
            metric_type="accuracy",
            metric_name="greedy answers that are right",
            metric_value=round(score.score, 4),
        )


def _left_out(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield "## Left out"
        yield (
            f"{len(names)} weights of the checkpoint that it was made from have no place in this model and are not "
            f"here: {', '.join(map(_code, names))}."
        )


def _of_hub(sources: Iterable[object]) -> Iterator[str]:
    for source in sources:
        if isinstance(source, str) and is_hub_id(source):
            yield source


def _named(source: object) -> str:
    """A model as a recipe names it; one from scratch by its architecture."""
    return str(source.get("architecture")) if isinstance(source, Mapping) else str(source)


def _leaf(tree: Mapping[str, Any], path: str) -> object:
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _table(seesaw: SeesawRecord) -> str:
    rows = ["| domain | base | its teacher | student | recovery |", "|---|---|---|---|---|"]
    for domain in seesaw.domains:
        base, student = (seesaw.models.get(model, {}).get(domain) for model in ("base", "student"))
        scores = [_score(score) for score in (base, seesaw.own_teacher(domain), student)]
        recovered = (seesaw.metrics.recovery or {}).get(domain)
        ends = (seesaw.intervals.recovery or {}).get(domain)
        cell = "–" if recovered is None else f"{percent(recovered)}{f' ({between(ends)})' if ends else ''}"
        rows.append(f"| {domain} | {' | '.join(scores)} | {cell} |")
    return "\n".join(rows)


def _score(score: DomainScore | None) -> str:
    if score is None:
        return "–"
    ends = "" if score.low is None or score.high is None else f" ({between((score.low, score.high), 1)})"
    return f"{percent(score.score, 1)}{ends}"

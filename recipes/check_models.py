"""Checks of models against each other and against the recipe: engines, tokenizers, vocabularies, context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from distill.adapters import with_adapters
from distill.engine import check_engine
from distill.recipe import Engine, Optimizer, Recipe
from distill.types import UserError
from recipes.lineage import adapter_folders, is_path
from recipes.survey import Facts, empty_model
from teachers.preflight import compare_heads, compare_tokenizers


def check_models(recipe: Recipe, facts: Mapping[str, Facts], *, device: Literal["cpu", "cuda"]) -> list[str]:
    """Every problem between the recipe and its models, each a sentence; models without facts are passed over.

    Args:
        facts: by the leaf that names the model, see :func:`recipes.survey.survey`.
    """
    return [*_engines(recipe, facts, device), *_teachers(recipe, facts), *_adapters(recipe, facts)]


def check_lengths(recipe: Recipe, facts: Mapping[str, Facts], longest_prompt: Mapping[str, int]) -> list[str]:
    """Whether prompt and completion fit every model's context.

    Args:
        longest_prompt: in tokens, by domain, of the prompts that were sampled.
    """
    if not longest_prompt:
        return []
    domain = max(longest_prompt, key=lambda name: longest_prompt[name])
    needed = longest_prompt[domain] + recipe.rollout.max_new_tokens
    problems: dict[str, None] = {}
    for model in facts.values():
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and needed > context:
            problems[
                f"`rollout.max_new_tokens` {recipe.rollout.max_new_tokens} after a prompt of {longest_prompt[domain]} "
                f"tokens (domain {domain!r}) makes {needed}, beyond the context of {context} tokens "
                f"(max_position_embeddings) of the model that `{model.origin.where}` names; lower it, or take a model "
                f"with a longer context"
            ] = None
    return list(problems)


def _engines(recipe: Recipe, facts: Mapping[str, Facts], device: Literal["cpu", "cuda"]) -> Iterator[str]:
    trained: dict[str, tuple[str, Engine, Optimizer]] = {
        "student": ("student.model", recipe.student.engine, recipe.student.optimizer)
    }
    for name, stage in recipe.stages.items():
        trained[f"stages.{name}"] = (f"stages.{name}.from", stage.engine, stage.optimizer)
    for section, (leaf, engine, optimizer) in trained.items():
        if leaf not in facts:
            continue
        try:
            check_engine(facts[leaf].config, engine, optimizer, device=device)
        except UserError as error:
            yield from (f"`{section}.engine`: {problem}" for problem in error.problems)
        rate = engine.expert_bias_rate
        if rate > 0 and rate != Engine.model_fields["expert_bias_rate"].default and not facts[leaf].correction_bias:
            yield (
                f"`{section}.engine.expert_bias_rate` is set and would change nothing (no router of "
                f"{facts[leaf].config.model_type} has a correction bias); take it away"
            )


def _teachers(recipe: Recipe, facts: Mapping[str, Facts]) -> Iterator[str]:
    student = facts.get("student.model")
    full = recipe.loss.estimator == "full_reverse_kl"
    for name in recipe.teachers:
        teacher = facts.get(f"teachers.{name}.model")
        if student is None or teacher is None or teacher is student:
            continue
        different = compare_tokenizers(teacher.tokenizer, student.tokenizer)
        different += compare_heads(teacher.config, student.config, full=full) if not different else []
        for problem in different:
            yield (
                f"`teachers.{name}` ({_told(teacher)}) {problem}; a teacher scores the student's token ids, so take "
                f"one of the student's family ({_told(student)})"
            )


def _adapters(recipe: Recipe, facts: Mapping[str, Facts]) -> Iterator[str]:
    for name, folder in adapter_folders(recipe).items():
        base = facts.get(f"teachers.{name}.model")
        where, given = f"`teachers.{name}.adapter`", recipe.teachers[name].adapter
        if given is not None and not is_path(given):
            yield f"{where} is {given!r}; an adapter is a folder: write its path, which begins with ./ or /"
        elif base is not None:
            try:
                with_adapters(empty_model(base.config)[0], [folder], device="cpu")
            except UserError as error:
                yield f"{where}: {error}"


def _told(facts: Facts) -> str:
    source = facts.origin.source
    return source if isinstance(source, str) else f"made from nothing by `{facts.origin.where}`"

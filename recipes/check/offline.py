"""`mopd check --offline`: what is known of Hub models without a network, what is assumed, and what stays open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import AutoConfig

from mopd.distill.recipe import EnvironmentSource, GymSource, Source
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.model_names import hub_name, is_path
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.resolved import Resolved

ARCHITECTURES = SHIPPED / "architectures"
"""Configurations of public models, as their repositories on the Hub have them: ORG--NAME.json."""
PROMPT_TOKENS = 512
"""What a prompt is counted as where nothing is known of its dataset or its tokenizer; generous for word problems."""


def known_config(name: str, given: Mapping[str, Any]) -> Any:
    """The configuration of a Hub model that the recipe gives, or that is shipped with this project.

    Args:
        given: `architectures` of the recipe.

    Raises:
        UserError: there is neither, or what is given is no configuration.
    """
    name, _ = hub_name(name)
    if name in given:
        return _given_config(name, given[name])
    path = ARCHITECTURES / f"{name.replace('/', '--')}.json"
    known = sorted({*(path.stem.replace("--", "/") for path in ARCHITECTURES.glob("*.json")), *given})
    if path.stem.replace("--", "/") not in known:
        raise UserError(
            f"without a network nothing is known of the Hub model {name!r}; {guess(name, known)}, check where there is "
            f"a network, give a path that begins with ./, or its config.json under `architectures`"
        )
    return AutoConfig.from_pretrained(path)


def _given_config(name: str, given: Any) -> Any:
    try:
        if isinstance(given, str):
            return AutoConfig.from_pretrained(given)
        return AutoConfig.for_model(**given)
    except Exception as error:  # OSError, ValueError, KeyError, JSON errors: whatever a configuration can be
        raise UserError(
            f"`architectures`: what is given for {name} is no configuration of transformers: {error!s:.300}"
        ) from error


def on_hub(task: str | Source | GymSource | EnvironmentSource) -> bool:
    """Whether a domain's prompts lie on the Hub."""
    path = dataset_path(task)
    return path is not None and not is_path(path)


def dataset_path(task: str | Source | GymSource | EnvironmentSource) -> str | None:
    """Where the dataset of a domain lies; None where it has none."""
    if isinstance(task, EnvironmentSource):
        kind, _, path = task.environment.partition(":")
        return path if kind == "conversations" else None
    return task.path if isinstance(task, Source) else None


def assumed_lengths(domains: Iterable[str], most: int, known: Mapping[str, Lengths]) -> dict[str, Lengths]:
    """Lengths of every domain: those that are known, and for the others long prompts with answers up to the cap."""
    assumed = Lengths(PROMPT_TOKENS, most, PROMPT_TOKENS + most, float(PROMPT_TOKENS), float(most), assumed=True)
    return {name: known.get(name, assumed) for name in domains}


def unchecked(resolved: Resolved) -> list[str]:
    """What a check without a network leaves open, a line each; empty where nothing of the recipe lies on the Hub."""
    origins = [model.origin.source for model in resolved.models.values() if model.origin is not None]
    models = sorted({source for source in origins if isinstance(source, str) and not is_path(source)})
    data = sorted({str(dataset_path(d.task)) for d in resolved.recipe.domains.values() if on_hub(d.task)})
    lines = []
    if models:
        lines.append(
            f"models {', '.join(models)}: counted by configurations that are shipped or given; tokenizers, chat "
            f"templates and weights were not looked at"
        )
    if data:
        lines.append(f"datasets {', '.join(data)}: rows, columns, splits and gold answers were not looked at")
    if models or data:
        lines.append(
            f"lengths: a prompt is counted as {PROMPT_TOKENS} tokens and an answer as rollout.max_new_tokens where its "
            f"dataset or its tokenizer is on the Hub; GPUs of this machine were not counted"
        )
    return lines

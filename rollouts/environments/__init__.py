"""Environments: who answers a model over several turns, and says at the end how well it did.

A task is the environment of one turn. base.py has the Protocols, tools.py makes a tool of a typed function, turns.py
goes between messages and exact token ids, episodes.py writes rollouts of several turns with any engine, runner.py runs
what an environment does and guards against it, task.py is an environment where a task is asked for; prefixes.py has
the student go on where another has begun. conversations.py plays those of a dataset. A rollout of
several turns is one sequence: what the model wrote is trained, all else is masked, and nothing that was written is
tokenised again. Where the environment is a program that asks for completions, dialogue.py turns its requests into
steps: endpoint.py serves them, program.py runs a command, kept.py keeps what they wrote; packages/ has the environments
of other packages. To add an environment: a file with its class, and a row of :data:`ENVIRONMENTS`; or
`environment: ./file.py:NAME` in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import EnvironmentSource, GymSource, Source
from mopd.distill.recipe.plugins import IMPORT_SECONDS, is_plugin, load_plugin, own_code
from mopd.distill.types import UserError
from mopd.rollouts.environments.base import Environment
from mopd.rollouts.environments.calculator import Calculator
from mopd.rollouts.environments.conversations import ConversationEnvironment
from mopd.rollouts.environments.debug import Debug
from mopd.rollouts.environments.packages.bfcl import BfclEnvironment
from mopd.rollouts.environments.packages.verifiers_hub import VerifiersEnvironment
from mopd.rollouts.environments.program import ProgramEnvironment
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.turns import check_turns, turns_of
from mopd.rollouts.tasks import Task, make_task

ENVIRONMENTS: dict[str, Environment] = {"calculator": Calculator(), "debug": Debug()}
"""Every shipped environment by the name that a recipe gives in ``domains: {NAME: {environment: ...}}``."""

PACKAGES: dict[str, Callable[..., Environment]] = {
    "bfcl": BfclEnvironment,
    "conversations": ConversationEnvironment,
    "verifiers": VerifiersEnvironment,
}
"""Of each package that has environments, and of datasets, what makes one of its name, `args` and seconds."""


def make_environment(source: EnvironmentSource, *, where: str) -> Environment:
    """A shipped environment by its name, a user's own by its file and name, one of another package, or a program.

    Args:
        where: the leaf of the recipe that names it, for the message.

    Raises:
        UserError: no shipped one has that name; there is no such object, or it has no ``reset``; or as
            those of :data:`PACKAGES` and :class:`ProgramEnvironment`.
    """
    name = source.environment
    kind, _, rest = name.partition(":")
    if kind in PACKAGES:
        return PACKAGES[kind](rest, source.args, seconds=source.seconds)
    if kind == "program":
        return ProgramEnvironment(rest, seconds=source.seconds)
    if not is_plugin(name):
        if name not in ENVIRONMENTS:
            raise UserError(f"`{where}`: no environment is called {name!r}; there are {', '.join(ENVIRONMENTS)}")
        return ENVIRONMENTS[name]
    environment = load_plugin(name, where=where)
    if isinstance(environment, type):
        remedy = "name an object, or a class that takes no arguments and is made quickly"
        with own_code(f"`{where}`: {name} is a class, and calling it fails", seconds=IMPORT_SECONDS, remedy=remedy):
            environment = environment()
    if not callable(getattr(environment, "reset", None)):
        raise UserError(f"`{where}`: {name} has no `reset`, which a mopd.Environment needs")
    return environment


def environment_task(
    source: EnvironmentSource, *, domain: str, tokenizer: PreTrainedTokenizerBase | None
) -> EnvironmentTask:
    """The task that a domain's `environment` is.

    Args:
        tokenizer: the student's, in whose chat template turns are written; None where it is yet to be trained.

    Raises:
        UserError: there is no such environment, or the student's template cannot write its conversations.
    """
    where, turns = f"domains.{domain}.environment", turns_of(tokenizer)
    limits = EpisodeLimits(source.turns, source.max_tokens_turn, source.max_tokens, source.seconds)
    environment = make_environment(source, where=where)
    task = EnvironmentTask(environment, domain=domain, turns=turns, limits=limits)
    if tokenizer is not None:
        task.fit(tokenizer)
        episode = task.open(seed=0, split="train", index=0, easy=False)
        check_turns(turns, episode.messages, episode.tools, where=where)
    return task


def domain_task(
    task: str | Source | GymSource | EnvironmentSource, *, domain: str, tokenizer: PreTrainedTokenizerBase | None
) -> Task:
    """What a domain's prompts come from: an environment, or a task by :func:`rollouts.tasks.make_task`.

    Raises:
        UserError: as those.
    """
    if isinstance(task, EnvironmentSource):
        return environment_task(task, domain=domain, tokenizer=tokenizer)
    return make_task(task, domain=domain, tokenizer=tokenizer)


__all__ = ["ENVIRONMENTS", "Environment", "domain_task", "environment_task", "make_environment"]

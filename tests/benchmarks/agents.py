"""What the models of a run owe to what their environments answer: as they are, with another's answers, without tools.

``python -m tests.benchmarks.agents RUN prompts=200`` plays test episodes of every domain that is an environment, with
the base, the domain's own teacher and the student, greedily. Swapped: the model reads what a right model was answered
in the episode beside it. Without: every call is answered with an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from mopd.distill.metrics.evaluate import interval
from mopd.distill.models.load import load_model
from mopd.distill.recipe import DomainRecipe, EnvironmentSource
from mopd.distill.types import Prompt
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.environments import make_environment
from mopd.rollouts.environments.base import Environment, Episode, Step, Turn
from mopd.rollouts.environments.episodes import EpisodeSampler
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.tools import ERROR
from mopd.rollouts.environments.turns import turns_of
from mopd.rollouts.tokenizer import end_token_ids, to_prompt, token_count

SETTINGS = {"prompts": 200}


class SwappedEpisode:
    """An episode whose observations are those of another, which its script was answered with.

    Args:
        episode: judges what the model writes.
        other: whose observations the model reads instead.
    """

    def __init__(self, episode: Any, other: Any) -> None:
        self._episode, self._other = episode, other
        self.messages, self.tools = episode.messages, episode.tools
        self.answer, self.script = episode.answer, episode.script
        self._turns = turns_of(None)
        self._last: Sequence[Turn] = ()
        self._turn = 0

    async def step(self, message: Turn) -> Step:
        """See :class:`rollouts.environments.base.Episode`."""
        answer = await self._episode.step(message)
        if answer.done:
            return answer
        if self._turn < len(self._other.script):
            read = self._turns.read(self._other.script[self._turn], self._other.tools)
            self._turn += 1
            self._last = (await self._other.step(read)).messages or self._last
        return replace(answer, messages=tuple(self._last) or answer.messages)


class WithoutTools:
    """An episode whose tools give errors; see :class:`SwappedEpisode`."""

    def __init__(self, episode: Any) -> None:
        self._episode = episode
        self.messages, self.tools = episode.messages, episode.tools
        self.answer, self.script = episode.answer, episode.script

    async def step(self, message: Turn) -> Step:
        """See :class:`rollouts.environments.base.Episode`."""
        calls = message.get("tool_calls") or ()
        errors = [{"role": "tool", "content": f"{ERROR}no tool"} for _ in calls]
        return Step(tuple(errors), failed=True) if errors else await self._episode.step(message)


class Changed:
    """An environment whose episodes are changed.

    Args:
        how: ``as it is``, ``swapped`` or ``without``.
    """

    def __init__(self, environment: Environment, how: str) -> None:
        self._environment, self._how = environment, how
        self.name = getattr(environment, "name", "")

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Episode:
        """See :class:`rollouts.environments.base.Environment`."""
        episode: Any = self._environment.reset(seed=seed, split=split, index=index, easy=easy)
        if self._how == "swapped":
            return SwappedEpisode(episode, self._environment.reset(seed=seed, split=split, index=index ^ 1, easy=easy))
        return WithoutTools(episode) if self._how == "without" else episode


def solved(model: Path, domain: str, source: EnvironmentSource, *, how: str, prompts: int, seed: int) -> list[float]:
    """The rewards of a checkpoint's greedy test episodes."""
    tokenizer = load_tokenizer(str(model))
    limits = EpisodeLimits(source.turns, source.max_tokens_turn, source.max_tokens, source.seconds)
    environment = Changed(make_environment(source, where=domain), how)
    task = EnvironmentTask(environment, domain=domain, turns=turns_of(tokenizer), limits=limits)
    examples = [task.example(seed=seed, split="test", index=index) for index in range(prompts)]
    asked: list[Prompt] = [to_prompt(tokenizer, domain=domain, example=example) for example in examples]
    ends = end_token_ids(tokenizer, str(model))
    decoding = Decoding(
        max_new_tokens=source.max_tokens_turn, temperature=1.0, greedy=True, seed=0, step=0, end_token_ids=ends,
        pad_token_id=ends[0], support=None, vocabulary=token_count(tokenizer),
    )  # fmt: skip
    writer = StudentSampler(decoding, samples_per_prompt=1, batch_size=256)
    writer.load_weights(InProcess(load_model(str(model), device="cpu", dtype="float32")), version=0)
    sampler = EpisodeSampler(
        writer, {domain: task}, tokenizer, samples_per_prompt=1, max_new_tokens=1, end_token_ids=ends
    )
    (rollouts,) = sampler.sample(asked, step=0, greedy=True)
    return [rollout.episode.reward for rollout in rollouts if rollout.episode is not None]


def folder_of(run: Path, model: str) -> Path:
    """The checkpoint that a recipe calls ``stage:NAME``, or names by its path."""
    stage = model.removeprefix("stage:")
    return Path(model) if stage == model else run / "stages" / stage / "student"


def measure(run: Path, *, prompts: int) -> dict[str, Any]:
    """Domain -> how -> model -> part solved, with its 95% interval."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    domains = {name: DomainRecipe.model_validate(settings) for name, settings in recipe["domains"].items()}
    measured: dict[str, Any] = {}
    for name, domain in domains.items():
        if not isinstance(domain.task, EnvironmentSource) or domain.teacher is None:
            continue
        models = {
            "base": folder_of(run, recipe["student"]["model"]),
            "teacher": folder_of(run, recipe["teachers"][domain.teacher]["model"]),
            "student": run / "student",
        }
        for how in ("as it is", "swapped", "without"):
            for model, folder in models.items():
                rewards = solved(
                    folder, name, domain.task, how=how, prompts=prompts, seed=recipe["evaluate"]["seed"]
                )  # fmt: skip
                score = interval([float(reward == 1.0) for reward in rewards])
                measured.setdefault(name, {}).setdefault(how, {})[model] = asdict(score)
                print(
                    f"{name} {how} {model}: {100 * score.score:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"
                )
    return measured


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[2:])
    settings = {name: int(given.get(name, default)) for name, default in SETTINGS.items()}
    print(json.dumps(measure(Path(sys.argv[1]), **settings)))

"""Episodes that another has begun: the student writes the next turn of them, and is graded on that alone.

A teacher plays an episode to its end, or a script says what is right. One of its turns is drawn, and what stands before
it is the student's prompt. So the student learns what to do in places that it does not reach by itself yet, and no
environment has to answer it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from mopd.distill.recipe.schema.domains import PrefixName
from mopd.distill.types import History, Prompt, Rollout, Sampler, Weights


@dataclass(frozen=True, slots=True)
class _Begun:
    """An episode up to a turn.

    Attributes:
        asked: what the student is given.
        prompt: the prompt of its rollout, after which the history is masked tokens.
    """

    asked: Prompt
    prompt: Prompt
    history: History


class PrefixSampler:
    """Satisfies :class:`distill.types.Sampler`: the student writes, of some prompts one turn after another's history.

    Args:
        student: plays episodes; see :data:`rollouts.environments.episodes.NEXT_TURN`.
        players: who plays the episodes that it goes on from, one a prompt, by the name that recipes have.
        parts: for each domain the parts of its prompts that fall to them; the rest is the student's own.
        seed: the recipe's, which keys the turns that are drawn.
    """

    def __init__(
        self,
        student: Sampler,
        players: Mapping[PrefixName, Sampler],
        *,
        parts: Mapping[str, Mapping[PrefixName, float]],
        seed: int,
    ) -> None:
        self._student, self._players = student, dict(players)
        self._parts = parts
        self._seed = seed

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """The student acts with ``weights``; who else plays has its own."""
        self._student.load_weights(weights, version=version)
        for player in self._players.values():
            player.load_weights(weights, version=version)

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """See :class:`distill.types.Sampler`. Samples of one prompt go on from the same turn."""
        assigned = self._assigned(prompts)
        begun: dict[int, _Begun] = {}
        for name, player in self._players.items():
            places = [place for place, other in enumerate(assigned) if other == name]
            begun |= self._begun(player, prompts, places, step)
        asked = [begun[place].asked if place in begun else prompt for place, prompt in enumerate(prompts)]
        for microbatch in self._student.sample(asked, step=step, greedy=greedy):
            yield [self._with_history(rollout, begun.get(rollout.group)) for rollout in microbatch]

    def _assigned(self, prompts: Sequence[Prompt]) -> list[PrefixName]:
        """Whose history each prompt gets: of n in a domain the whole number below n x part, spread over them."""
        seen: dict[str, int] = {}
        assigned: list[PrefixName] = []
        for prompt in prompts:
            parts = self._parts.get(prompt.domain, {})
            before = seen.get(prompt.domain, 0)
            seen[prompt.domain] = before + 1
            ends = list(accumulate(parts.values()))
            whole = [int((before + 1) * end + 1e-9) - int(before * end + 1e-9) for end in ends]
            new: list[PrefixName] = [name for name, more in zip(parts, whole, strict=True) if more]
            assigned.append(new[0] if new else "student")
        return assigned

    def _begun(self, player: Sampler, prompts: Sequence[Prompt], places: Sequence[int], step: int) -> dict[int, _Begun]:
        if not places:
            return {}
        sequences: dict[int, list[Rollout]] = {place: [] for place in places}
        for microbatch in player.sample([prompts[place] for place in places], step=step):
            for rollout in microbatch:
                sequences[places[rollout.group]].append(rollout)
        return {place: self._up_to_a_turn(prompts[place], played, step, place) for place, played in sequences.items()}

    def _up_to_a_turn(self, prompt: Prompt, played: Sequence[Rollout], step: int, place: int) -> _Begun:
        """One of the turns of an episode, each as likely; the first, where the player wrote none."""
        turns = [(rollout, start) for rollout in played for start in turn_starts(rollout)]
        writer = played[0].writer if played else None
        tokens = sum(len(rollout.token_ids) for rollout in played)
        number = int(np.random.default_rng([self._seed, step, place]).integers(len(turns))) if turns else 0
        base, ids = prompt, prompt.token_ids
        if turns:
            rollout, start = turns[number]
            ids = tuple(rollout.token_ids[:start].tolist())
            base = prompt if ids[: len(prompt.token_ids)] == prompt.token_ids else rollout.prompt
        asked = replace(prompt, id=f"{prompt.id}/turn-{number}", token_ids=ids)
        return _Begun(asked, base, History(writer, number, tokens))

    def _with_history(self, rollout: Rollout, begun: _Begun | None) -> Rollout:
        return rollout if begun is None else replace(rollout, prompt=begun.prompt, history=begun.history)


def turn_starts(rollout: Rollout) -> list[int]:
    """Where the turns of an episode's sequence begin: positions of trained tokens after others."""
    mask_T = rollout.loss_mask
    return np.flatnonzero(mask_T & ~np.concatenate([[False], mask_T[:-1]])).tolist()  # not per token

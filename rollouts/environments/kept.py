"""Rollouts of programs are kept before anything is learnt from them: what cannot be had again is not asked for again.

A tool that is a pure function answers a resumed run as it answered before, and keyed randomness does the rest. A
program may not: so what it and the student wrote in a step is written down, and a run that does the step again reads
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mopd.distill.rollout_files import packed, unpacked
from mopd.distill.storage import write_atomic
from mopd.distill.types import Prompt, Rollout, RunError, Sampler, Weights
from mopd.rollouts.environments.task import EnvironmentTask

FOLDER = "episodes"
"""In a run's folder."""


class KeptEpisodes:
    """Satisfies :class:`distill.types.Sampler`: what it samples is written down, and read where a step is done again.

    Args:
        sampler: writes the rollouts.
        folder: where they are kept, one file a step.
        steps: that are kept, the newest: as many as a resumed run may go back.
    """

    def __init__(self, sampler: Sampler, folder: Path, *, steps: int) -> None:
        self._sampler, self._folder, self._steps = sampler, folder, steps
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """See :class:`distill.types.Sampler`."""
        self._version = version
        self._sampler.load_weights(weights, version=version)

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """See :class:`distill.types.Sampler`.

        Raises:
            RunError: what was kept cannot be read.
        """
        if greedy:
            yield from self._sampler.sample(prompts, step=step, greedy=True)
            return
        path, asked = self._folder / f"step-{step:06d}.npz", self._asked(prompts)
        kept = self._read(path, asked)
        if kept is None:
            kept = [rollout for batch in self._sampler.sample(prompts, step=step) for rollout in batch]
            self._folder.mkdir(exist_ok=True)
            write_atomic(path, packed([kept], asked=asked))
            for old in sorted(self._folder.glob("step-*.npz")):
                if int(old.stem.removeprefix("step-")) <= step - self._steps:
                    old.unlink()
        yield kept

    def _read(self, path: Path, asked: str) -> list[Rollout] | None:
        """What was kept; None where nothing was, or what follows from something else."""
        if not path.exists():
            return None
        try:
            kept = unpacked(path.read_bytes(), asked=asked)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); remove it, and the step is played again") from error
        return None if kept is None else [rollout for batch in kept for rollout in batch]

    def _asked(self, prompts: Sequence[Prompt]) -> str:
        """What the rollouts follow from, as a digest: which weights were asked what."""
        asked = [self._version, [[prompt.domain, prompt.id, *map(int, prompt.token_ids)] for prompt in prompts]]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def keeps_episodes(tasks: Mapping[str, Any]) -> bool:
    """Whether any domain's episodes are played by what may answer otherwise another time."""
    return any(isinstance(task, EnvironmentTask) and task.stored for task in tasks.values())

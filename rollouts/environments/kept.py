"""Rollouts of programs are kept before anything is learnt from them: what cannot be had again is not asked for again.

A tool that is a pure function answers a resumed run as it answered before, and keyed randomness does the rest. A
program may not: so what it and the student wrote in a step is written down, and a run that does the step again reads
it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mopd.distill.storage import write_atomic
from mopd.distill.types import DraftCounts, EpisodeRecord, Prompt, Rollout, RunError, Sampler, Weights
from mopd.rollouts.environments.task import EnvironmentTask

ARRAYS = ("token_ids", "loss_mask", "sampler_logprobs", "routed_experts", "support_ids")
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
        kept = read_rollouts(path, asked)
        if kept is None:
            kept = [rollout for batch in self._sampler.sample(prompts, step=step) for rollout in batch]
            self._folder.mkdir(exist_ok=True)
            write_atomic(path, packed(kept, asked))
            for old in sorted(self._folder.glob("step-*.npz")):
                if int(old.stem.removeprefix("step-")) <= step - self._steps:
                    old.unlink()
        yield kept

    def _asked(self, prompts: Sequence[Prompt]) -> str:
        """What the rollouts follow from, as a digest: which weights were asked what."""
        asked = [self._version, [[prompt.domain, prompt.id, *map(int, prompt.token_ids)] for prompt in prompts]]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def keeps_episodes(tasks: Mapping[str, Any]) -> bool:
    """Whether any domain's episodes are played by what may answer otherwise another time."""
    return any(isinstance(task, EnvironmentTask) and task.stored for task in tasks.values())


def packed(rollouts: Sequence[Rollout], asked: str) -> bytes:
    """Rollouts as a file of numpy's.

    Args:
        asked: what they follow from.
    """
    rows, arrays = [], dict[str, np.ndarray]()
    for place, rollout in enumerate(rollouts):
        present = {name: value for name in ARRAYS if (value := getattr(rollout, name)) is not None}
        arrays |= {f"{place}/{name}": value for name, value in present.items()}
        rows.append(
            {
                "prompt": asdict(rollout.prompt),
                "arrays": list(present),
                "drafts": None if rollout.drafts is None else asdict(rollout.drafts),
                "episode": None if rollout.episode is None else asdict(rollout.episode),
                **{name: getattr(rollout, name) for name in ("finish", "version", "group", "index")},
            }
        )
    header = json.dumps({"asked": asked, "rollouts": rows}).encode()
    file = io.BytesIO()
    np.savez_compressed(file, header=np.frombuffer(header, dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def read_rollouts(path: Path, asked: str) -> list[Rollout] | None:
    """The rollouts of a file; None where there is none, or they follow from something else.

    Raises:
        RunError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["asked"] != asked:
                return None
            return [_rollout(place, row, file) for place, row in enumerate(header["rollouts"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove it, and the step is played again") from error


def _rollout(place: int, row: Mapping[str, Any], file: Any) -> Rollout:
    return Rollout(
        prompt=Prompt(**_tuples(row["prompt"])),
        finish=row["finish"],
        version=tuple(row["version"]),
        group=row["group"],
        index=row["index"],
        drafts=None if row["drafts"] is None else DraftCounts(**_tuples(row["drafts"])),
        episode=None if row["episode"] is None else EpisodeRecord(**_tuples(row["episode"])),
        **{name: file[f"{place}/{name}"] for name in row["arrays"]},
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of JSON as the tuples that they were."""
    return {name: _tuple(value) for name, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(each) for each in value) if isinstance(value, list) else value

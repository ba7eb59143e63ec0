"""Rollouts as a file: what a resumed run must read, because it cannot write it again."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from mopd.distill.types import DraftCounts, EpisodeRecord, History, Prompt, Rollout

ARRAYS = ("token_ids", "loss_mask", "sampler_logprobs", "routed_experts", "support_ids")


def packed(microbatches: Sequence[Sequence[Rollout]], *, asked: str) -> bytes:
    """Microbatches of rollouts as a file of numpy's, bit by bit.

    Args:
        asked: what they follow from; :func:`unpacked` compares it.
    """
    rows, arrays = [], dict[str, np.ndarray]()
    for place, rollout in enumerate(rollout for microbatch in microbatches for rollout in microbatch):
        present = {name: value for name in ARRAYS if (value := getattr(rollout, name)) is not None}
        arrays |= {f"{place}/{name}": value for name, value in present.items()}
        rows.append(
            {
                "prompt": asdict(rollout.prompt),
                "arrays": list(present),
                "drafts": None if rollout.drafts is None else asdict(rollout.drafts),
                "episode": None if rollout.episode is None else asdict(rollout.episode),
                "history": None if rollout.history is None else asdict(rollout.history),
                **{name: getattr(rollout, name) for name in ("finish", "version", "group", "index", "writer")},
            }
        )
    sizes = [len(microbatch) for microbatch in microbatches]
    header = json.dumps({"asked": asked, "rollouts": rows, "microbatches": sizes}).encode()
    file = io.BytesIO()
    np.savez_compressed(file, header=np.frombuffer(header, dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpacked(content: bytes, *, asked: str) -> list[list[Rollout]] | None:
    """The microbatches of a file; None where they follow from something else.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["asked"] != asked:
                return None
            rollouts = iter([_rollout(place, row, file) for place, row in enumerate(header["rollouts"])])
            sizes = header.get("microbatches", [len(header["rollouts"])])  # files of earlier versions have one
            return [list(islice(rollouts, size)) for size in sizes]
    except (OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error


def _rollout(place: int, row: Mapping[str, Any], file: Any) -> Rollout:
    return Rollout(
        prompt=Prompt(**_tuples(row["prompt"])),
        finish=row["finish"],
        version=tuple(row["version"]),
        group=row["group"],
        index=row["index"],
        drafts=None if row["drafts"] is None else DraftCounts(**_tuples(row["drafts"])),
        episode=None if row["episode"] is None else EpisodeRecord(**_tuples(row["episode"])),
        writer=row.get("writer"),
        history=None if row.get("history") is None else History(**row["history"]),
        **{name: file[f"{place}/{name}"] for name in row["arrays"]},
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of JSON as the tuples that they were."""
    return {name: _tuple(value) for name, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(each) for each in value) if isinstance(value, list) else value

"""Answers of base and specialists that the runs of a study share: who was measured once is not asked again."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.storage import write_atomic
from mopd.distill.tracking.jsonl import read_jsonl


class SharedAnswers:
    """A folder of answers within a study's: a file for each stage's result and set of questions.

    Attributes:
        asking: to be held while models are measured, so that a run that wants the same answers waits for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.asking = threading.Lock()

    def find(self, name: str, model: str, fingerprint: str) -> list[Evaluation]:
        """The answers of the checkpoint at ``model``, under the name ``name``; empty where there are none.

        Args:
            fingerprint: of the questions; see :attr:`Evaluator.fingerprint`.
        """
        path = self._path(model, fingerprint)
        return [] if path is None else [replace(Evaluation(**row), model=name) for row in read_jsonl(path)]

    def files(self, model: str, fingerprint: str) -> dict[Split, Path]:
        """Where what the checkpoint at ``model`` wrote is kept, by split; nothing for one from elsewhere."""
        path = self._path(model, fingerprint)
        splits: tuple[Split, ...] = ("validation", "test")
        return {} if path is None else {split: path.with_suffix(f".{split}.parquet") for split in splits}

    def keep(self, model: str, fingerprint: str, answers: Sequence[Evaluation], files: Mapping[Split, Path]) -> None:
        """Keep all answers of the checkpoint at ``model`` to the questions, if it is a stage of the study.

        Args:
            files: where their texts are, by split.
        """
        path = self._path(model, fingerprint)
        if path is None:
            return
        self._folder.mkdir(exist_ok=True)
        for split, kept in self.files(model, fingerprint).items():
            if files[split].is_file():
                write_atomic(kept, files[split].read_bytes())
        write_atomic(path, "".join(json.dumps(row.record(), allow_nan=False) + "\n" for row in answers))

    def _path(self, model: str, fingerprint: str) -> Path | None:
        """None for a checkpoint from elsewhere, which may change while its path doesn't."""
        path = Path(model).resolve()  # its stage's folder carries the fingerprint of all that it depends on
        if not path.is_relative_to(self._folder.parent):
            return None
        return self._folder / f"{path.parent.name}-{fingerprint}.jsonl"

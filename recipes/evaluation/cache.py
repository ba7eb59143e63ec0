"""Answers of base and specialists that the runs of a study share: who was measured once is not asked again."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mopd.distill.metrics.evaluate import Evaluation
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

    def keep(self, model: str, fingerprint: str, answers: Sequence[Evaluation]) -> None:
        """Keep all answers of the checkpoint at ``model`` to the questions, if it is a stage of the study."""
        path = self._path(model, fingerprint)
        if path is not None:
            self._folder.mkdir(exist_ok=True)
            write_atomic(path, "".join(json.dumps(row.record(), allow_nan=False) + "\n" for row in answers))

    def _path(self, model: str, fingerprint: str) -> Path | None:
        """None for a checkpoint from elsewhere, which may change while its path doesn't."""
        path = Path(model).resolve()  # its stage's folder carries the fingerprint of all that it depends on
        if not path.is_relative_to(self._folder.parent):
            return None
        return self._folder / f"{path.parent.name}-{fingerprint}.jsonl"

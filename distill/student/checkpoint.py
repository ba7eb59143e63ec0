"""Checkpoints of the student, which are whole or absent, and the export to Hugging Face.

A checkpoint is written under a temporary name and published under its own; see distill/storage.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mopd.distill.storage import check_current, publishing, remove

_STEP = re.compile(r"^step-(\d{6,})$")


def checkpoint_name(step: int) -> str:
    """The folder's name of the checkpoint after ``step`` finished steps: ``step-000020``."""
    return f"step-{step:06d}"


def whole_checkpoints(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending. A half-written one has another name, a damaged one may not."""
    if not Path(folder).is_dir():
        return []
    return sorted(int(match[1]) for path in Path(folder).iterdir() if (match := _STEP.match(path.name)))


def prune(
    run_dir: str | Path, folder: str | Path, *, keep: int, attempt: str, keep_steps: Collection[int] = ()
) -> None:
    """Remove all but the newest ``keep`` checkpoints and the steps ``keep_steps``, and what other attempts half wrote.

    Raises:
        RunError: a newer attempt owns the run; what is half written may be its own.
    """
    with publishing(run_dir):
        check_current(run_dir, attempt, "the list of checkpoints")
        for step in set(whole_checkpoints(folder)[:-keep]) - set(keep_steps):
            remove(Path(folder) / checkpoint_name(step))
        for path in Path(folder).glob("step-*.damaged"):
            if path.with_suffix("").exists():  # that step has been saved again
                remove(path)
        for path in Path(folder).glob("*.tmp-*"):
            if not path.name.endswith(f".tmp-{attempt}"):
                remove(path)


def export_hf(
    path: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor],
    model: Any,
    source: str | Path,
    own_code: bool = False,
    end_token_ids: Sequence[int] = (),
    published: Mapping[str, Any] | None = None,
) -> None:
    """Write a Hugging Face checkpoint into the folder ``path``: weights, configuration, generation config, tokenizer.

    Args:
        path: a folder that is not there yet; the caller publishes it under its final name.
        state_dict: consolidated weights under Hugging Face names.
        model: the live model, for its configuration and generation config alone.
        source: the checkpoint that the tokenizer is taken from; one without a tokenizer exports none.
        own_code: whether Python code that lies in the folder ``source`` may run; it is exported too.
        end_token_ids: what ends a completion; the generation config gets those that it lacks.
        published: keys that the configuration gets.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), trust_remote_code=own_code)
    for name, value in (published or {}).items():
        setattr(shell.config, name, value)
    shell.generation_config = model.generation_config
    declared = model.generation_config.eos_token_id
    known = declared if isinstance(declared, list) else [declared] if isinstance(declared, int) else []
    if more := [i for i in end_token_ids if i not in known]:
        shell.generation_config = copy.deepcopy(model.generation_config)
        shell.generation_config.eos_token_id = [*known, *more]
    shell.save_pretrained(path, state_dict=dict(state_dict))
    if (Path(source) / "tokenizer_config.json").exists():
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source, trust_remote_code=own_code).save_pretrained(path)

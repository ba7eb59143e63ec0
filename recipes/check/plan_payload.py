"""What teachers ship to the student, and what its ranks hold to make use of it, in bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mopd.distill.payload_rows import RowSizes, payload_spec
from mopd.distill.recipe import Engine
from mopd.distill.student.engine import model_dtype
from mopd.distill.student.forward import CHUNKS
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.tokenizer import control_ids

WORKING_TENSORS = 6
"""Chunks of tokens x vocabulary that the divergence from hidden states holds at a time."""


def shipped_bytes(resolved: Resolved, model_infos: Mapping[str, ModelInfo], teacher: str) -> int:
    """Bytes that a teacher ships of one token under the recipe's loss."""
    loss = resolved.loss
    if loss.payload is None:
        return 0
    text, support = model_infos[f"teachers.{teacher}.model"].config.get_text_config(), 0
    if loss.support is not None:
        tokenizer = model_infos["student.model"].tokenizer
        forced = 0 if tokenizer is None else len(control_ids(tokenizer))
        support = loss.support.k * (2 if loss.support.whose == "union" else 1) + forced
    sizes = RowSizes(
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        support=support,
        value_bytes=_value_bytes(resolved.teachers[teacher]),
    )
    return payload_spec(loss.payload).row_bytes(sizes)


def logits_bytes(model_infos: ModelInfo, engine: Engine, *, device: str) -> float:
    """Bytes of a rank for the logits of a microbatch and what is computed of them."""
    vocabulary = model_infos.config.get_text_config().vocab_size
    return 3.0 * engine.microbatch_tokens * vocabulary * model_dtype(engine, device).itemsize


def comparing_bytes(resolved: Resolved, model_infos: Mapping[str, ModelInfo]) -> float:
    """Bytes of a rank of the student for distributions: those of logits, or of heads and chunks of logits."""
    recipe = resolved.recipe
    engine, student = recipe.student.engine, model_infos["student.model"].config.get_text_config()
    if resolved.loss.payload != "hidden":
        return logits_bytes(model_infos["student.model"], engine, device=resolved.device)
    heads = {
        (teacher.model, teacher.dtype): model_infos[f"teachers.{name}.model"].config.get_text_config().hidden_size
        * _value_bytes(resolved.teachers[name])
        for name, teacher in recipe.teachers.items()
    }
    chunk = 4.0 * min(engine.microbatch_tokens, CHUNKS.tokens) * min(student.vocab_size, CHUNKS.vocabulary)
    gradient = 4.0 * student.vocab_size * student.hidden_size  # of the student's head, in one piece
    return sum(heads.values()) * student.vocab_size + WORKING_TENSORS * chunk + gradient


def _value_bytes(teacher: ResolvedTeacher) -> int:
    return getattr(torch, teacher.dtype).itemsize

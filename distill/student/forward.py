"""One forward of the student: from a microbatch to the loss of each token, by way of logits or of hidden states.

Shape legend: B sequences, T tokens of a sequence, N trained tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mopd.distill.loss.base import TokenLoss, bounded, spread, teacher_gap
from mopd.distill.loss.hidden import Chunks, TeacherHidden, hidden_reverse_kl
from mopd.distill.loss.microbatch import Microbatch, trained_columns
from mopd.distill.loss.registry import BoundLoss
from mopd.distill.loss.teacher_tensors import HiddenRows
from mopd.distill.models.heads import HeadSource, fingerprint, in_place_of_head, logits_at, plain_head
from mopd.distill.models.packing import ModelRows
from mopd.distill.student.update_metrics import UpdateTotals
from mopd.distill.types import RunError, align_logits

CHUNKS = Chunks(tokens=1024, vocabulary=8192)
"""32 MiB a tensor in float32: large enough for a GPU to be busy, small beside a head of a real vocabulary."""


def read_heads(
    sources: Sequence[HeadSource], device: torch.device | str, *, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """The teachers' output heads ``(V, H)`` by their fingerprints; one that several teachers share is held once.

    Args:
        vocabulary: only so many rows of each are kept, those of the tokenizer's ids.

    Raises:
        OSError: a checkpoint is not there, or cannot be read.
        UserError: one lacks weights.
    """
    heads: dict[str, Tensor] = {}
    for source in dict.fromkeys(sources):
        weight_VH = source.read("cpu")
        name = fingerprint(weight_VH)
        if name not in heads:
            heads[name] = weight_VH[:vocabulary].to(device, copy=True)
    return heads


@dataclass(frozen=True, slots=True)
class Objective:
    """What a rank's student is trained for.

    Attributes:
        loss: the estimator with its settings.
        temperature: the student's logits are divided by it.
        vocabulary: its distribution is over this many ids; None: over the whole output head.
        heads: of the teachers, where they ship hidden states; see :func:`read_heads`.
    """

    loss: BoundLoss
    temperature: float
    heads: Mapping[str, Tensor]
    vocabulary: int | None = None


def forward(
    engine: Any, microbatch: Microbatch, rows: ModelRows, objective: Objective, totals: UpdateTotals
) -> TokenLoss:
    """Each token's loss under the student's distribution of now. Logits are made for trained tokens alone.

    Args:
        engine: DeepSpeed's, around a causal model of transformers.
        rows: the microbatch's sequences, as the model is given them.
        totals: get, in the backward, the norm of the gradient at each token's tempered logits.

    Raises:
        RunError: a teacher's hidden states belong to a head that is not here.
        UserError: the student's own hidden states do not tell its distribution.
    """
    if microbatch.hidden is not None:
        return _from_hidden(engine, microbatch, microbatch.hidden, rows, objective, totals)
    trained = trained_columns(microbatch)
    raw_BNV = logits_at(engine, engine.module, trained.places_BN, rows)
    logits_BNV = raw_BNV[..., : objective.vocabulary].float() / objective.temperature
    totals.watch_gradient(logits_BNV, microbatch)
    token_loss = objective.loss.token_loss(logits_BNV, trained.microbatch)
    mask_BN = trained.microbatch.mask_BT
    stats = {name: values_BN[mask_BN] for name, values_BN in token_loss.stats.items()}
    return spread(token_loss.loss_BT[mask_BN], stats, microbatch.mask_BT)


def _from_hidden(
    engine: Any,
    microbatch: Microbatch,
    teachers: HiddenRows,
    rows: ModelRows,
    objective: Objective,
    totals: UpdateTotals,
) -> TokenLoss:
    """``full_reverse_kl`` where the student's output head gives each token's divergence: nothing is ``(T, V)``.

    Loss and statistics are those of :func:`full_reverse_kl`, several teachers with weights too.
    """
    head, mask_BT = plain_head(engine.module), microbatch.mask_BT
    groups = [
        [TeacherHidden(p.weight, p.hidden_NH, _held(objective.heads, p.head)) for p in group]
        for group in teachers.groups
    ]

    def scattered(values: Tensor) -> Tensor:
        """From one row a token to ``(B, T, ...)``, zeros elsewhere."""
        flat = values.new_zeros(mask_BT.numel(), *values.shape[1:])  # not per token
        return flat.index_copy(0, teachers.places_N, values).unflatten(0, mask_BT.shape)

    def divergence(hidden_BTH: Tensor) -> Tensor:
        kl = hidden_reverse_kl(
            student_NH=align_logits(rows.padded(hidden_BTH)).flatten(0, 1)[teachers.places_N],
            student_head_VH=head.weight[: objective.vocabulary],
            groups=groups,
            tokens_N=microbatch.token_ids_BT.flatten()[teachers.places_N],
            temperature=objective.temperature,
            chunks=CHUNKS,
            on_gradient_norms=lambda norms_N: totals.add_gradient(scattered(norms_N), microbatch),
        )
        return scattered(torch.stack([kl.kl_N, kl.entropy_N, kl.logprobs_N, kl.teacher_logprobs_N], dim=-1))

    columns_BT4 = in_place_of_head(engine, head, divergence, rows)
    kl_N = columns_BT4[..., 0][mask_BT]
    _, entropy_N, logprobs_N, teacher_logprobs_N = columns_BT4.detach()[mask_BT].unbind(-1)
    stats = {
        "kl": kl_N.detach(),
        "entropy": entropy_N,
        "advantage": teacher_gap(teacher_logprobs_N=teacher_logprobs_N, student_logprobs_N=logprobs_N),
        "ratio": (logprobs_N - microbatch.sampler_logprobs_BT[mask_BT]).exp(),
    }
    return bounded(spread(kl_N, stats, mask_BT), objective.loss.token_bound)


def _held(heads: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in heads:
        raise RunError(
            f"a teacher's hidden states belong to the output head {name}, and the student holds {', '.join(heads)}: "
            "its checkpoint was changed during the run; put the old one back and resume"
        )
    return heads[name]

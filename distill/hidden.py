"""The exact full-vocabulary reverse KL from hidden states: no tensor of tokens x vocabulary is ever held.

A teacher's last hidden states and its output head say as much as its logits, in H numbers a token instead of V. The
divergence is summed chunk by chunk over the vocabulary (an online softmax), and the backward goes through the same
chunks once more, so that the memory beyond the heads is that of one chunk.

Source: the divergence is the expectation of the MiMo-V2-Flash report's eqs 6-8 (arXiv 2601.02780) over the token; the
running sums are those of Milakov and Gimelshein, Online normalizer calculation for softmax (arXiv 1805.02867).

Shape legend: N tokens, V vocabulary, H hidden size of the student, G of the teacher, C tokens of a vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Chunks:
    """How much is held at a time: ``tokens x vocabulary`` numbers, about five times."""

    tokens: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class HiddenKL:
    """What :func:`hidden_reverse_kl` returns, each ``(N,)``, in nats; all but ``kl_N`` detached.

    Attributes:
        kl_N: ``KL(pi || pi_T)`` of each token's whole distribution.
        entropy_N: of the student's distribution.
        logprobs_N: the student's log-probability of the token that was drawn.
        teacher_logprobs_N: the teacher's of the same token.
    """

    kl_N: Tensor
    entropy_N: Tensor
    logprobs_N: Tensor
    teacher_logprobs_N: Tensor


def hidden_reverse_kl(
    *,
    student_NH: Tensor,
    student_head_VH: Tensor,
    teacher_NG: Tensor,
    teacher_head_VG: Tensor,
    tokens_N: Tensor,
    temperature: float,
    chunks: Chunks,
) -> HiddenKL:
    """``KL(pi || pi_T)`` where both distributions are softmaxes of hidden states times a head, without bias.

    Args:
        student_NH: the student's last hidden states, aligned; they and ``student_head_VH`` get a gradient.
        student_head_VH: the student's output head.
        teacher_NG: the teacher's last hidden states of the same tokens.
        teacher_head_VG: the teacher's output head, of the same vocabulary.
        tokens_N: the tokens that were drawn, int64.
        temperature: both models' logits are divided by it.

    Raises:
        ValueError: the heads are of different vocabularies.
    """
    if len(student_head_VH) != len(teacher_head_VG):
        raise ValueError(
            f"the student's head has {len(student_head_VH)} tokens, the teacher's {len(teacher_head_VG)}; "
            "a divergence needs one vocabulary"
        )
    out = _HiddenReverseKL.apply(
        student_NH, student_head_VH, teacher_NG, teacher_head_VG, tokens_N, temperature, chunks
    )
    return HiddenKL(*out)


class _HiddenReverseKL(torch.autograd.Function):
    """The analytic gradient at the student's logits is ``p * (log p / q - KL)``: exactly 0 where they agree."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NH: Tensor,
        student_head_VH: Tensor,
        teacher_NG: Tensor,
        teacher_head_VG: Tensor,
        tokens_N: Tensor,
        temperature: float,
        chunks: Chunks,
    ) -> tuple[Tensor, ...]:
        pair = _Pair(student_head_VH, teacher_head_VG, 1.0 / temperature, chunks.vocabulary)
        parts = [
            pair.sums(student_NH[rows], teacher_NG[rows], tokens_N[rows]) for rows in _rows(len(student_NH), chunks)
        ]
        columns = zip(*parts, strict=True) if parts else ([student_NH.new_zeros(0, dtype=torch.float64)],) * 6
        kl_N, entropy_N, logprobs_N, teacher_logprobs_N, lse_N, teacher_lse_N = (torch.cat(list(c)) for c in columns)
        ctx.save_for_backward(student_NH, student_head_VH, teacher_NG, teacher_head_VG, kl_N, lse_N, teacher_lse_N)
        ctx.temperature, ctx.chunks = temperature, chunks
        told = tuple(x.float() for x in (kl_N, entropy_N, logprobs_N, teacher_logprobs_N))
        ctx.mark_non_differentiable(*told[1:])  # not per token
        return told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        student_NH, student_head_VH, teacher_NG, teacher_head_VG, kl_N, lse_N, teacher_lse_N = ctx.saved_tensors
        pair = _Pair(student_head_VH, teacher_head_VG, 1.0 / ctx.temperature, ctx.chunks.vocabulary)
        grad_NH = torch.zeros_like(student_NH)
        grad_head_VH = torch.zeros_like(student_head_VH, dtype=torch.float32)
        # What is taken from log p - log q: both normalisers and the divergence, one number a token.
        offset_N = (lse_N - teacher_lse_N + kl_N).float()
        for rows in _rows(len(student_NH), ctx.chunks):
            scale_N1 = (grads[0][rows] / ctx.temperature).unsqueeze(1)
            student_nH = student_NH[rows]
            for columns, z_NC, teacher_z_NC in pair.logits(student_nH, teacher_NG[rows]):
                p_NC = (z_NC - lse_N[rows].float().unsqueeze(1)).exp_()
                g_NC = z_NC.sub_(teacher_z_NC).sub_(offset_N[rows].unsqueeze(1)).mul_(p_NC).mul_(scale_N1)
                g_NC = g_NC.to(student_NH.dtype)
                grad_NH[rows] += g_NC @ student_head_VH[columns]
                grad_head_VH[columns] += g_NC.T @ student_nH
        return grad_NH, grad_head_VH.to(student_head_VH.dtype), None, None, None, None, None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two heads over one vocabulary, read in chunks."""

    head_VH: Tensor
    teacher_head_VG: Tensor
    scale: float
    chunk: int

    def logits(self, hidden_NH: Tensor, teacher_NG: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Both models' logits, chunk by chunk of the vocabulary, in float32 at least; they may be written to."""
        for start in range(0, len(self.head_VH), self.chunk):
            columns = slice(start, start + self.chunk)
            z_NC = (hidden_NH @ self.head_VH[columns].T).to(_wide(hidden_NH)).mul_(self.scale)
            teacher_z_NC = (teacher_NG @ self.teacher_head_VG[columns].T).to(_wide(teacher_NG)).mul_(self.scale)
            yield columns, z_NC, teacher_z_NC

    def sums(self, hidden_NH: Tensor, teacher_NG: Tensor, tokens_N: Tensor) -> tuple[Tensor, ...]:
        """KL, entropy, both log-probabilities of the drawn tokens, both normalisers; each ``(N,)`` in float64."""
        n, device = len(hidden_NH), hidden_NH.device
        top_N = torch.full((n,), -torch.inf, device=device)
        teacher_top_N = top_N.clone()
        mass_N, teacher_mass_N, gap_N, energy_N, drawn_N, teacher_drawn_N = (
            torch.zeros(n, dtype=torch.float64, device=device) for _ in range(6)
        )
        for columns, z_NC, teacher_z_NC in self.logits(hidden_NH, teacher_NG):
            _pick(drawn_N, z_NC, tokens_N, columns.start)
            _pick(teacher_drawn_N, teacher_z_NC, tokens_N, columns.start)
            before_N, top_N = top_N, torch.maximum(top_N, z_NC.amax(-1))
            shrink_N = (before_N - top_N).double().exp()
            e_NC = (z_NC - top_N.unsqueeze(1)).exp_()
            mass_N = mass_N * shrink_N + e_NC.sum(-1, dtype=torch.float64)
            energy_N = energy_N * shrink_N + (e_NC * z_NC).sum(-1, dtype=torch.float64)
            gap_N = gap_N * shrink_N + e_NC.mul_(z_NC.sub_(teacher_z_NC)).sum(-1, dtype=torch.float64)
            before_N, teacher_top_N = teacher_top_N, torch.maximum(teacher_top_N, teacher_z_NC.amax(-1))
            e_NC = teacher_z_NC.sub_(teacher_top_N.unsqueeze(1)).exp_()
            shrink_N = (before_N - teacher_top_N).double().exp()
            teacher_mass_N = teacher_mass_N * shrink_N + e_NC.sum(-1, dtype=torch.float64)
        lse_N = top_N.double() + mass_N.log()
        teacher_lse_N = teacher_top_N.double() + teacher_mass_N.log()
        kl_N = gap_N / mass_N - lse_N + teacher_lse_N
        return kl_N, lse_N - energy_N / mass_N, drawn_N - lse_N, teacher_drawn_N - teacher_lse_N, lse_N, teacher_lse_N


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _pick(into_N: Tensor, z_NC: Tensor, tokens_N: Tensor, start: int) -> None:
    """Take the logits of the tokens that lie in this chunk."""
    place_N = tokens_N - start
    here_N = (place_N >= 0) & (place_N < z_NC.shape[1])
    picked_N = z_NC.gather(1, place_N.clamp(0, z_NC.shape[1] - 1).unsqueeze(1)).squeeze(1)
    into_N.copy_(torch.where(here_N, picked_N.double(), into_N))


def _rows(n: int, chunks: Chunks) -> Iterator[slice]:
    for start in range(0, n, chunks.tokens):
        yield slice(start, start + chunks.tokens)

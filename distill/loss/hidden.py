"""The exact full-vocabulary reverse KL from hidden states: no tensor of tokens x vocabulary is ever held.

A teacher's last hidden states and its output head say as much as its logits, in H numbers a token instead of V. The
divergence is summed chunk by chunk over the vocabulary (an online softmax), and the backward goes through the same
chunks once more, so that the memory beyond the heads is that of one chunk.

Source: the divergence is the expectation of the MiMo-V2-Flash report's eqs 6-8 (arXiv 2601.02780) over the token; the
running sums are those of Milakov and Gimelshein, Online normalizer calculation for softmax (arXiv 1805.02867).

Shape legend: N tokens, V vocabulary, H hidden size of the student, G of a teacher, C tokens of a vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Chunks:
    """How much is held at a time: ``tokens x vocabulary`` numbers, about five times, and one more for each teacher."""

    tokens: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class TeacherHidden:
    """What one teacher says of tokens: its weight, its last hidden states ``(N, G)``, its output head ``(V, G)``."""

    weight: float
    hidden_NG: Tensor
    head_VG: Tensor


@dataclass(frozen=True, slots=True)
class HiddenKL:
    """What :func:`hidden_reverse_kl` returns, each ``(N,)``, in nats; all but ``kl_N`` detached.

    Attributes:
        kl_N: ``sum_k w_k KL(pi || pi_k)`` of each token's whole distribution.
        entropy_N: of the student's distribution.
        logprobs_N: the student's log-probability of the token that was drawn.
        teacher_logprobs_N: the teachers' of the same token, their weighted mean.
    """

    kl_N: Tensor
    entropy_N: Tensor
    logprobs_N: Tensor
    teacher_logprobs_N: Tensor


def hidden_reverse_kl(
    *,
    student_NH: Tensor,
    student_head_VH: Tensor,
    groups: Sequence[Sequence[TeacherHidden]],
    tokens_N: Tensor,
    temperature: float,
    chunks: Chunks,
    on_gradient_norms: Callable[[Tensor], None] | None = None,
) -> HiddenKL:
    """``sum_k w_k KL(pi || pi_k)`` where all distributions are softmaxes of hidden states times a head, without bias.

    Several teachers take one pass: ``sum_k w_k KL(pi || pi_k) = E_pi[log pi - sum_k w_k log pi_k]`` for weights that
    sum to 1.

    Args:
        student_NH: the student's last hidden states, aligned; they and ``student_head_VH`` get a gradient.
        student_head_VH: the student's output head.
        groups: for consecutive tokens of the student what each of their teachers says; in the tokens' order.
        tokens_N: the tokens that were drawn, int64.
        temperature: all models' logits are divided by it.
        on_gradient_norms: called in the backward with the norms of the gradient at tempered logits, ``(N,)``.

    Raises:
        ValueError: the heads are of different vocabularies, or the groups have other tokens than the student.
    """
    for teacher in (teacher for group in groups for teacher in group):
        if len(student_head_VH) != len(teacher.head_VG):
            raise ValueError(
                f"the student's head has {len(student_head_VH)} tokens, the teacher's {len(teacher.head_VG)}; "
                "a divergence needs one vocabulary"
            )
    graded = sum(len(group[0].hidden_NG) for group in groups)
    if graded != len(student_NH):
        raise ValueError(f"the teachers speak of {graded} tokens, the student of {len(student_NH)}")
    job = _Job(groups, tokens_N, 1.0 / temperature, chunks, on_gradient_norms)
    return HiddenKL(*_HiddenReverseKL.apply(student_NH, student_head_VH, job))


class _HiddenReverseKL(torch.autograd.Function):
    """The analytic gradient at the student's logits is ``p * (log p / q - KL)``: exactly 0 where they agree."""

    @staticmethod
    def forward(ctx: Any, student_NH: Tensor, head_VH: Tensor, job: _Job) -> tuple[Tensor, ...]:
        parts = [
            job.sums(student_NH[rows], head_VH, teachers, job.tokens_N[rows]) for rows, teachers in job.row_chunks()
        ]
        columns = zip(*parts, strict=True) if parts else ([student_NH.new_zeros(0, dtype=torch.float64)],) * 6
        kl_N, entropy_N, logprobs_N, teacher_logprobs_N, lse_N, teacher_lse_N = (torch.cat(list(c)) for c in columns)
        ctx.save_for_backward(student_NH, head_VH, kl_N, lse_N, teacher_lse_N)
        ctx.job = job
        results = tuple(x.float() for x in (kl_N, entropy_N, logprobs_N, teacher_logprobs_N))
        ctx.mark_non_differentiable(*results[1:])  # not per token
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        student_NH, head_VH, kl_N, lse_N, teacher_lse_N = ctx.saved_tensors
        job: _Job = ctx.job
        grad_NH = torch.zeros_like(student_NH)
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32)
        squares_N = torch.zeros_like(lse_N, dtype=torch.float32)
        # What is taken from log p - log q: both normalisers and the divergence, one number a token.
        offset_N = (lse_N - teacher_lse_N + kl_N).float()
        for rows, teachers in job.row_chunks():
            student_nH = student_NH[rows]
            for columns, z_NC, teacher_z in job.logits(student_nH, head_VH, teachers):
                p_NC = (z_NC - lse_N[rows].float().unsqueeze(1)).exp_()
                g_NC = z_NC.sub_(_mean(teacher_z, teachers)).sub_(offset_N[rows].unsqueeze(1)).mul_(p_NC)
                g_NC = g_NC.mul_(grads[0][rows].unsqueeze(1))
                squares_N[rows] += torch.linalg.vector_norm(g_NC, dim=1).square_()
                g_NC = g_NC.mul_(job.scale).to(student_NH.dtype)
                grad_NH[rows] += g_NC @ head_VH[columns]
                grad_head_VH[columns] += g_NC.T @ student_nH
        if job.on_gradient_norms is not None:
            job.on_gradient_norms(squares_N.sqrt_())
        return grad_NH, grad_head_VH.to(head_VH.dtype), None


@dataclass(frozen=True, slots=True)
class _Job:
    """What has no gradient, read in chunks."""

    groups: Sequence[Sequence[TeacherHidden]]
    tokens_N: Tensor
    scale: float
    chunks: Chunks
    on_gradient_norms: Callable[[Tensor], None] | None

    def row_chunks(self) -> Iterator[tuple[slice, list[TeacherHidden]]]:
        """Tokens of one group, a chunk of them at a time, with what their teachers say of just these."""
        first = 0
        for group in self.groups:
            n = len(group[0].hidden_NG)
            for start in range(0, n, self.chunks.tokens):
                end = min(n, start + self.chunks.tokens)
                rows = [TeacherHidden(t.weight, t.hidden_NG[start:end], t.head_VG) for t in group]
                yield slice(first + start, first + end), rows
            first += n

    def logits(
        self, hidden_NH: Tensor, head_VH: Tensor, teachers: Sequence[TeacherHidden]
    ) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Everybody's logits, chunk by chunk of the vocabulary, in float32 at least; they may be written to."""

        def tempered(hidden_NH: Tensor, head_CH: Tensor) -> Tensor:
            return (hidden_NH @ head_CH.T).to(_wide(hidden_NH)).mul_(self.scale)

        for start in range(0, len(head_VH), self.chunks.vocabulary):
            columns = slice(start, start + self.chunks.vocabulary)
            teacher_z = [tempered(teacher.hidden_NG, teacher.head_VG[columns]) for teacher in teachers]
            yield columns, tempered(hidden_NH, head_VH[columns]), teacher_z

    def sums(
        self, hidden_NH: Tensor, head_VH: Tensor, teachers: Sequence[TeacherHidden], tokens_N: Tensor
    ) -> tuple[Tensor, ...]:
        """KL, entropy, both log-probabilities of the drawn tokens, both normalisers; each ``(N,)`` in float64."""
        n, device = len(hidden_NH), hidden_NH.device
        student = _Running(n, 2, device)  # of its own logit, and of its logit less the teachers'
        by_teacher = [_Running(n, 0, device) for _ in teachers]
        drawn_N, teacher_drawn_N = (torch.zeros(n, dtype=torch.float64, device=device) for _ in range(2))
        for columns, z_NC, teacher_z in self.logits(hidden_NH, head_VH, teachers):
            mean_NC = _mean(teacher_z, teachers)
            _pick(drawn_N, z_NC, tokens_N, columns.start)
            _pick(teacher_drawn_N, mean_NC, tokens_N, columns.start)
            student.add(z_NC, z_NC, z_NC - mean_NC)
            for running, teacher_z_NC in zip(by_teacher, teacher_z, strict=True):
                running.add(teacher_z_NC)
        lse_N, (energy_N, gap_N) = student.log_sum(), student.means()
        teacher_lse_N = torch.zeros_like(lse_N)
        for teacher, running in zip(teachers, by_teacher, strict=True):
            teacher_lse_N += teacher.weight * running.log_sum()
        kl_N = gap_N - lse_N + teacher_lse_N
        return kl_N, lse_N - energy_N, drawn_N - lse_N, teacher_drawn_N - teacher_lse_N, lse_N, teacher_lse_N


class _Running:
    """An online softmax: the sum of ``exp(z)`` and the means of values under it, over chunks, in float64."""

    def __init__(self, n: int, values: int, device: torch.device) -> None:
        self._top_N = torch.full((n,), -torch.inf, device=device)
        self._mass_N, *self._sums = torch.zeros(1 + values, n, dtype=torch.float64, device=device)

    def add(self, z_NC: Tensor, *values_NC: Tensor) -> None:
        """One more chunk."""
        before_N, self._top_N = self._top_N, torch.maximum(self._top_N, z_NC.amax(-1))
        shrink_N = (before_N - self._top_N).double().exp()
        e_NC = (z_NC - self._top_N.unsqueeze(1)).exp_()
        self._mass_N = self._mass_N * shrink_N + e_NC.sum(-1, dtype=torch.float64)
        for k, value_NC in enumerate(values_NC):
            self._sums[k] = self._sums[k] * shrink_N + (e_NC * value_NC).sum(-1, dtype=torch.float64)

    def log_sum(self) -> Tensor:
        """The logarithm of the sum of ``exp(z)``."""
        return self._top_N.double() + self._mass_N.log()

    def means(self) -> list[Tensor]:
        """Of each value, under the softmax."""
        return [total_N / self._mass_N for total_N in self._sums]


def _mean(teacher_z: Sequence[Tensor], teachers: Sequence[TeacherHidden]) -> Tensor:
    """The weighted mean of the teachers' logits; a single teacher's own, bit by bit."""
    if len(teacher_z) == 1:
        return teacher_z[0]
    mean_NC = torch.zeros_like(teacher_z[0])
    for teacher, z_NC in zip(teachers, teacher_z, strict=True):
        mean_NC.add_(z_NC, alpha=teacher.weight)
    return mean_NC


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _pick(into_N: Tensor, z_NC: Tensor, tokens_N: Tensor, start: int) -> None:
    """Take the logits of the tokens that lie in this chunk."""
    place_N = tokens_N - start
    here_N = (place_N >= 0) & (place_N < z_NC.shape[1])
    picked_N = z_NC.gather(1, place_N.clamp(0, z_NC.shape[1] - 1).unsqueeze(1)).squeeze(1)
    into_N.copy_(torch.where(here_N, picked_N.double(), into_N))

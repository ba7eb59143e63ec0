"""The exact divergence from hidden states on a GPU, at a real vocabulary: its value, its gradient, its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mopd.distill.loss.hidden import TeacherHidden, hidden_reverse_kl
from mopd.distill.student.forward import CHUNKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]
TOKENS, VOCABULARY, HIDDEN = 4096, 151936, 256


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """The student's hidden states and head, the teacher's; logits of the size of 1."""
    torch.manual_seed(0)
    shapes = ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN)) * 2
    return [torch.randn(shape, device="cuda").mul_(HIDDEN**-0.25).to(dtype) for shape in shapes]


def naive(student_NH: Tensor, head_VH: Tensor, teacher_NG: Tensor, teacher_head_VG: Tensor) -> Tensor:
    """Over whole distributions; logits leave the head in its dtype, as a model's do, and are float32 from there."""
    logp_NV = torch.log_softmax((student_NH @ head_VH.T).float(), -1)
    with torch.no_grad():
        logq_NV = torch.log_softmax((teacher_NG @ teacher_head_VG.T).float(), -1)
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)


def from_hidden(student_NH: Tensor, head_VH: Tensor, teacher_NG: Tensor, teacher_head_VG: Tensor) -> Tensor:
    return hidden_reverse_kl(
        student_NH=student_NH,
        student_head_VH=head_VH,
        groups=[[TeacherHidden(1.0, teacher_NG, teacher_head_VG)]],
        tokens_N=torch.zeros(TOKENS, dtype=torch.int64, device="cuda"),
        temperature=1.0,
        chunks=CHUNKS,
    ).kl_N


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_it_equals_the_naive_one_in_a_tenth_of_the_memory(dtype: torch.dtype, tolerance: float) -> None:
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    peaks: dict[str, int] = {}
    for name, divergence in (("naive", naive), ("hidden", from_hidden)):
        student_NH, head_VH, *teacher = inputs(dtype)
        student_NH.requires_grad_()
        head_VH.requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        kl_N = divergence(student_NH, head_VH, *teacher)
        kl_N.mean().backward()
        end.record()
        torch.cuda.synchronize()
        assert student_NH.grad is not None
        assert head_VH.grad is not None
        peaks[name] = torch.cuda.max_memory_allocated() - before - head_VH.grad.nbytes
        found[name] = kl_N.detach().cpu(), student_NH.grad.float().cpu(), head_VH.grad.float().cpu()
        print(f"\n{dtype} {name}: {peaks[name] / 2**20:.0f} MiB beyond heads, {start.elapsed_time(end):.0f} ms")
    for one, other in zip(found["hidden"], found["naive"], strict=True):
        error = float((one - other).norm() / other.norm())
        print(f"{dtype}: relative error {error:.1e}")
        assert error < tolerance
    assert peaks["hidden"] < peaks["naive"] / 10

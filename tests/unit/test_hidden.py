"""The divergence from hidden states is that of the full logits, in loss and gradient, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.hidden import Chunks, HiddenKL, hidden_reverse_kl

N, V, H, G = 37, 1009, 24, 16


def problem(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Hidden states, heads and drawn tokens; logits spread over about ten nats."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "student_NH": normal(N, H),
        "student_head_VH": normal(V, H) * 0.4,
        "teacher_NG": normal(N, G),
        "teacher_head_VG": normal(V, G) * 0.5,
        "tokens_N": torch.randint(V, (N,), generator=generator),
    }


def oracle(given: dict[str, Tensor], weights_N: Tensor, temperature: float) -> tuple[HiddenKL, Tensor, Tensor]:
    """In float64, from the definition, with autograd."""
    student_NH = given["student_NH"].double().requires_grad_()
    head_VH = given["student_head_VH"].double().requires_grad_()
    logp_NV = torch.log_softmax(student_NH @ head_VH.T / temperature, -1)
    logq_NV = torch.log_softmax(given["teacher_NG"].double() @ given["teacher_head_VG"].double().T / temperature, -1)
    kl_N = (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)
    (kl_N * weights_N).sum().backward()
    rows = torch.arange(N)
    told = HiddenKL(
        kl_N.detach(),
        -(logp_NV.exp() * logp_NV).sum(-1).detach(),
        logp_NV[rows, given["tokens_N"]].detach(),
        logq_NV[rows, given["tokens_N"]],
    )
    assert student_NH.grad is not None
    assert head_VH.grad is not None
    return told, student_NH.grad, head_VH.grad


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunks", [Chunks(N, V), Chunks(8, 100), Chunks(1, 7), Chunks(1000, 1008)], ids=str)
def test_it_is_the_full_divergence(chunks: Chunks, temperature: float) -> None:
    given = problem()
    weights_N = torch.linspace(0.1, 2.0, N)
    expected, grad_NH, grad_VH = oracle(given, weights_N, temperature)
    student_NH = given["student_NH"].requires_grad_()
    head_VH = given["student_head_VH"].requires_grad_()
    told = hidden_reverse_kl(**given, temperature=temperature, chunks=chunks)
    (told.kl_N * weights_N).sum().backward()
    for name in HiddenKL.__slots__:
        assert distance(getattr(told, name).detach(), getattr(expected, name)) < 1e-6, name
    assert distance(student_NH.grad, grad_NH) < 1e-6
    assert distance(head_VH.grad, grad_VH) < 1e-6
    assert not told.entropy_N.requires_grad


def test_a_teacher_that_is_the_student_gives_no_gradient() -> None:
    given = problem()
    given |= {"teacher_NG": given["student_NH"].clone(), "teacher_head_VG": given["student_head_VH"].clone()}
    student_NH = given["student_NH"].requires_grad_()
    told = hidden_reverse_kl(**given, temperature=1.0, chunks=Chunks(16, 128))
    told.kl_N.sum().backward()
    assert float(told.kl_N.detach().abs().max()) == 0
    assert float(student_NH.grad.abs().max()) < 1e-7


def test_bfloat16_is_close() -> None:
    weights_N = torch.ones(N)
    given = problem(dtype=torch.bfloat16)
    expected, grad_NH, _ = oracle(given, weights_N, 1.0)
    student_NH = given["student_NH"].requires_grad_()
    told = hidden_reverse_kl(**given, temperature=1.0, chunks=Chunks(16, 128))
    told.kl_N.sum().backward()
    assert told.kl_N.dtype == torch.float32
    assert distance(told.kl_N.detach(), expected.kl_N) < 0.02
    assert student_NH.grad.dtype == torch.bfloat16
    assert distance(student_NH.grad, grad_NH) < 0.02


def test_no_tokens_and_other_vocabularies() -> None:
    given = problem()
    empty = {name: t[:0] if name.endswith(("NH", "NG", "N")) else t for name, t in given.items()}
    assert hidden_reverse_kl(**empty, temperature=1.0, chunks=Chunks(8, 8)).kl_N.shape == (0,)
    given["teacher_head_VG"] = given["teacher_head_VG"][:1000]
    with pytest.raises(ValueError, match="1009 tokens, the teacher's 1000"):
        hidden_reverse_kl(**given, temperature=1.0, chunks=Chunks(8, 8))

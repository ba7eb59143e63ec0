"""The divergence from hidden states is that of the full logits, in loss and gradient, whatever the chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mopd.distill.loss.hidden import Chunks, HiddenKL, TeacherHidden, hidden_reverse_kl

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


def asked(given: dict[str, Tensor]) -> dict[str, Any]:
    """A problem of one teacher as arguments."""
    teacher = TeacherHidden(1.0, given["teacher_NG"], given["teacher_head_VG"])
    students = {name: given[name] for name in ("student_NH", "student_head_VH", "tokens_N")}
    return {**students, "groups": [[teacher]]}


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
    norms: list[Tensor] = []
    told = hidden_reverse_kl(**asked(given), temperature=temperature, chunks=chunks, on_gradient_norms=norms.append)
    (told.kl_N * weights_N).sum().backward()
    for name in HiddenKL.__slots__:
        assert distance(getattr(told, name).detach(), getattr(expected, name)) < 1e-6, name
    assert distance(student_NH.grad, grad_NH) < 1e-6
    assert distance(head_VH.grad, grad_VH) < 1e-6
    assert not told.entropy_N.requires_grad
    (norms_N,) = norms
    assert distance(norms_N, gradient_norms(given, weights_N, temperature)) < 1e-6


def gradient_norms(given: dict[str, Tensor], weights_N: Tensor, temperature: float) -> Tensor:
    """Of the weighted divergence, at the tempered logits of each token, by autograd in float64."""
    with torch.no_grad():
        z_NV, q_NV = (
            given[who].double() @ given[head].double().T / temperature
            for who, head in (("student_NH", "student_head_VH"), ("teacher_NG", "teacher_head_VG"))
        )
    z_NV.requires_grad_()
    kl_N = (z_NV.softmax(-1) * (z_NV.log_softmax(-1) - q_NV.log_softmax(-1))).sum(-1)
    (gradient_NV,) = torch.autograd.grad((kl_N * weights_N).sum(), z_NV)
    return gradient_NV.norm(dim=-1)


@pytest.mark.parametrize("chunks", [Chunks(N, V), Chunks(8, 100)], ids=str)
def test_groups_of_several_teachers_are_the_weighted_sum_of_their_divergences(chunks: Chunks) -> None:
    """The first tokens have one teacher, the others two with heads of other sizes."""
    given, other = problem(), problem(seed=1)
    cut, temperature, weights_N = 14, 0.8, torch.linspace(0.1, 2.0, N)
    first = TeacherHidden(1.0, given["teacher_NG"], given["teacher_head_VG"])
    second = TeacherHidden(1.0, other["student_NH"], other["student_head_VH"] * 1.2)
    teachers = [[(1.0, first)]] * cut + [[(0.3, first), (0.7, second)]] * (N - cut)
    groups = [
        [TeacherHidden(1.0, first.hidden_NG[:cut], first.head_VG)],
        [TeacherHidden(w, one.hidden_NG[cut:], one.head_VG) for w, one in teachers[-1]],
    ]
    student_NH, head_VH = given["student_NH"].requires_grad_(), given["student_head_VH"].requires_grad_()
    norms: list[Tensor] = []
    told = hidden_reverse_kl(
        student_NH=student_NH,
        student_head_VH=head_VH,
        groups=groups,
        tokens_N=given["tokens_N"],
        temperature=temperature,
        chunks=chunks,
        on_gradient_norms=norms.append,
    )
    (told.kl_N * weights_N).sum().backward()

    double_NH, double_VH = (x.detach().double().requires_grad_() for x in (student_NH, head_VH))
    z_NV = double_NH @ double_VH.T / temperature
    z_NV.retain_grad()
    logp_NV, total, mean_N = z_NV.log_softmax(-1), torch.zeros((), dtype=torch.float64), []
    for n, mine in enumerate(teachers):
        logq = [(w, (t.head_VG.double() @ t.hidden_NG[n].double() / temperature).log_softmax(-1)) for w, t in mine]
        kl = sum(w * (logp_NV[n].exp() * (logp_NV[n] - q_V)).sum() for w, q_V in logq)
        assert float(told.kl_N[n].detach()) == pytest.approx(float(kl), rel=1e-6)
        total = total + weights_N[n] * kl
        mean_N.append(sum(w * float(q_V[given["tokens_N"][n]]) for w, q_V in logq))
    total.backward()
    assert told.teacher_logprobs_N.tolist() == pytest.approx(mean_N, rel=1e-5)
    for ours, theirs in ((student_NH.grad, double_NH.grad), (head_VH.grad, double_VH.grad)):
        assert distance(ours, theirs) < 1e-6
    assert distance(norms[0], z_NV.grad.norm(dim=-1)) < 1e-6


def test_a_teacher_that_is_the_student_gives_no_gradient() -> None:
    given = problem()
    given |= {"teacher_NG": given["student_NH"].clone(), "teacher_head_VG": given["student_head_VH"].clone()}
    student_NH = given["student_NH"].requires_grad_()
    told = hidden_reverse_kl(**asked(given), temperature=1.0, chunks=Chunks(16, 128))
    told.kl_N.sum().backward()
    assert float(told.kl_N.detach().abs().max()) == 0
    assert float(student_NH.grad.abs().max()) < 1e-7


def test_bfloat16_is_close() -> None:
    weights_N = torch.ones(N)
    given = problem(dtype=torch.bfloat16)
    expected, grad_NH, _ = oracle(given, weights_N, 1.0)
    student_NH = given["student_NH"].requires_grad_()
    told = hidden_reverse_kl(**asked(given), temperature=1.0, chunks=Chunks(16, 128))
    told.kl_N.sum().backward()
    assert told.kl_N.dtype == torch.float32
    assert distance(told.kl_N.detach(), expected.kl_N) < 0.02
    assert student_NH.grad.dtype == torch.bfloat16
    assert distance(student_NH.grad, grad_NH) < 0.02


def test_no_tokens_and_other_vocabularies() -> None:
    given = problem()
    empty = {name: t[:0] if name.endswith(("NH", "NG", "N")) else t for name, t in given.items()}
    assert hidden_reverse_kl(**asked(empty), temperature=1.0, chunks=Chunks(8, 8)).kl_N.shape == (0,)
    nobody = {**asked(empty), "groups": []}
    assert hidden_reverse_kl(**nobody, temperature=1.0, chunks=Chunks(8, 8)).kl_N.shape == (0,)
    with pytest.raises(ValueError, match=f"speak of 0 tokens, the student of {N}"):
        hidden_reverse_kl(**{**asked(given), "groups": []}, temperature=1.0, chunks=Chunks(8, 8))
    given["teacher_head_VG"] = given["teacher_head_VG"][:1000]
    with pytest.raises(ValueError, match="1009 tokens, the teacher's 1000"):
        hidden_reverse_kl(**asked(given), temperature=1.0, chunks=Chunks(8, 8))

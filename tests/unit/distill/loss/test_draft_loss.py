"""The draft heads' loss against sums written with loops."""

from __future__ import annotations

import math

import pytest
import torch

from mopd.distill.loss.drafts import draft_divergence, draft_loss


def naive(own: list[float], guess: list[float]) -> tuple[float, float]:
    def softmax(row: list[float]) -> list[float]:
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    p, q = softmax(own), softmax(guess)
    kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    return kl, sum(min(a, b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocabulary", [None, 7])
def test_divergence_and_overlap_are_those_of_the_definition(temperature: float, vocabulary: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    head_VH, own_NH, guess_NH = (torch.randn(shape, generator=generator) for shape in ((9, 4), (5, 4), (5, 4)))
    result = draft_loss(
        own_NH, guess_NH, lambda hidden: hidden @ head_VH.T, temperature=temperature, vocabulary=vocabulary
    )
    for n in range(5):
        rows = [(head_VH @ hidden[n] / temperature)[:vocabulary].tolist() for hidden in (own_NH, guess_NH)]
        kl, overlap = naive(*rows)
        assert float(result.kl_N[n]) == pytest.approx(kl, abs=1e-5)
        assert float(result.overlap_N[n]) == pytest.approx(overlap, abs=1e-5)


def test_the_gradient_is_q_minus_p_and_the_student_gets_none() -> None:
    own_NV, guess_NV = (torch.randn(3, 6, requires_grad=True) for _ in range(2))
    draft_divergence(own_NV, guess_NV).kl_N.sum().backward()
    assert own_NV.grad is None
    assert guess_NV.grad is not None
    torch.testing.assert_close(guess_NV.grad, (guess_NV.softmax(-1) - own_NV.softmax(-1)).detach())


def test_a_token_that_the_student_never_writes_costs_nothing() -> None:
    own_NV = torch.tensor([[0.0, -torch.inf, 0.0]])
    result = draft_divergence(own_NV, torch.zeros(1, 3))
    assert float(result.kl_N) == pytest.approx(math.log(1.5))
    assert float(result.overlap_N) == pytest.approx(2 / 3)


def test_a_part_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head_VH, own_NH, start_NH = torch.randn(9, 4), torch.randn(50, 4), torch.randn(50, 4)
    made = []
    for rows in (1024, 7):
        monkeypatch.setattr("mopd.distill.loss.drafts.ROWS", rows)
        guess_NH = start_NH.clone().requires_grad_()
        result = draft_loss(own_NH, guess_NH, lambda hidden: hidden @ head_VH.T, temperature=1.0, vocabulary=None)
        result.kl_N.sum().backward()
        made.append((result.kl_N.detach(), result.overlap_N, guess_NH.grad))
    for at_once, in_parts in zip(*made, strict=True):
        torch.testing.assert_close(at_once, in_parts)

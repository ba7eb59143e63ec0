"""Agreement with TRL's own functions on random inputs, where TRL has the same divergence: values and gradients."""

import pytest
import torch
from losses_kit import BUCKET, FORWARD, FULL, V, graded, microbatch, rows, run, topk_arrays
from trl.experimental.gkd import GKDTrainer
from trl.experimental.server_distillation.server_distillation_trainer import _add_tail_bucket, _jsd_divergence

from mopd.distill.payloads import Support, top_k
from mopd.distill.recipe import JSD

MASK = torch.tensor([[False, True, True, False], [False, False, True, True], [False, True, False, False]])
TOKENS = [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def gkd(student, teacher, *, beta, temperature):
    """TRL's loss summed over the trained tokens, and its gradient at the student's raw logits."""
    student = student.detach().requires_grad_()
    labels = torch.where(MASK, 0, -100)
    loss = GKDTrainer.generalized_jsd_loss(
        student, teacher, labels, beta=beta, temperature=temperature, num_items_in_batch=1
    )
    (gradient,) = torch.autograd.grad(loss, student)
    return loss, gradient


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("beta", "settings"),
    [(0, FORWARD), (1, FULL), *((beta, JSD(estimator="jsd", beta=beta)) for beta in (0, 0.1, 0.5, 0.9, 1))],
    ids=lambda x: getattr(x, "estimator", str(x)),
)
def test_whole_distributions_agree_with_gkd(beta, settings, temperature):
    student, teacher = 2 * rows(3, 4, V, seed=0), 2 * rows(3, 4, V, seed=1)
    batch = graded(settings.estimator, MASK, TOKENS, (teacher / temperature).log_softmax(-1))
    out, at_tempered = run(settings.estimator, student / temperature, batch, settings)
    loss, gradient = gkd(student, teacher, beta=beta, temperature=temperature)
    torch.testing.assert_close(out.loss_BT.sum(), loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at_tempered / temperature, gradient, rtol=1e-10, atol=1e-12)
    assert gradient.abs().max() > 1e-2


def test_the_tail_bucket_agrees():
    logits, logq = 2 * rows(3, 4, V, seed=2).requires_grad_(), (2 * rows(3, 4, V, seed=3)).log_softmax(-1)
    ids, kept, rest = top_k(logq, Support(2, (0,)))
    slots = [([1.0] * 3, topk_arrays(ids, kept, rest, logq[..., 0]))]
    out, ours = run("topk_reverse_kl", logits, microbatch(MASK, TOKENS, slots=slots), BUCKET)
    there = torch.ones_like(ids, dtype=torch.bool)
    student, support = _add_tail_bucket(logits.log_softmax(-1).gather(-1, ids), there)
    teacher, _ = _add_tail_bucket(kept, there)
    loss_BT = _jsd_divergence(student, teacher, beta=1, support_mask=support).sum(-1) * MASK
    torch.testing.assert_close(out.loss_BT, loss_BT.detach(), rtol=1e-9, atol=1e-12)
    (theirs,) = torch.autograd.grad(loss_BT.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)

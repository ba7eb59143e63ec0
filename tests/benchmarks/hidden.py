"""Memory and time of the exact divergence from hidden states, beside the naive one over full logits.

Each is measured in a process of its own: the peak of its resident memory beyond what the inputs, both heads and their
gradients take. The naive one is measured at a quarter of the tokens, and scaled: at all of them it needs over 10 GiB.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time

import torch

from mopd.distill.loss.hidden import TeacherHidden, hidden_reverse_kl
from mopd.distill.student.forward import CHUNKS

TOKENS, VOCABULARY, HIDDEN = 4096, 151936, 256
SIZES = f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden size {HIDDEN}"
NAIVE_PART = 4


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _inputs(tokens: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    student_NH, teacher_NG = torch.randn(tokens, HIDDEN), torch.randn(tokens, HIDDEN)
    heads = [torch.randn(VOCABULARY, HIDDEN).mul_(0.1) for _ in range(2)]
    return {
        "student_NH": student_NH.requires_grad_(),
        "student_head_VH": heads[0].requires_grad_(),
        "teacher_NG": teacher_NG,
        "teacher_head_VG": heads[1],
        "tokens_N": torch.randint(VOCABULARY, (tokens,)),
    }


def _naive(given: dict[str, torch.Tensor]) -> torch.Tensor:
    logp_NV = torch.log_softmax(given["student_NH"] @ given["student_head_VH"].T, -1)
    with torch.no_grad():
        logq_NV = torch.log_softmax(given["teacher_NG"] @ given["teacher_head_VG"].T, -1)
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)


def _from_hidden(given: dict[str, torch.Tensor]) -> torch.Tensor:
    teacher = TeacherHidden(1.0, given["teacher_NG"], given["teacher_head_VG"])
    students = {name: given[name] for name in ("student_NH", "student_head_VH", "tokens_N")}
    return hidden_reverse_kl(**students, groups=[[teacher]], temperature=1.0, chunks=CHUNKS).kl_N


def _measure(name: str, pipe: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    tokens = TOKENS // NAIVE_PART if name == "naive" else TOKENS
    given = _inputs(tokens)
    for parameter in (given["student_NH"], given["student_head_VH"]):
        parameter.grad = torch.zeros_like(parameter).add_(1.0)  # touched, so that it is resident already
    before, start = _peak_bytes(), time.perf_counter()
    kl_N = (_naive if name == "naive" else _from_hidden)(given)
    kl_N.mean().backward()
    pipe.send((_peak_bytes() - before, time.perf_counter() - start, float(kl_N.detach().mean())))


def measure() -> dict[str, float]:
    """Extra bytes at the peak and seconds of both, at ``TOKENS`` tokens, and their ratios."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, tuple[float, float]] = {}
    for name in ("naive", "hidden"):
        here, there = context.Pipe()
        process = context.Process(target=_measure, args=(name, there))
        process.start()
        extra, seconds, _ = here.recv()
        process.join()
        # The head's gradient is returned in one piece before it is added: it belongs to the heads, on both sides.
        extra -= VOCABULARY * HIDDEN * 4
        scale = NAIVE_PART if name == "naive" else 1
        found[name] = extra * scale, seconds * scale
    (naive_bytes, naive_seconds), (hidden_bytes, hidden_seconds) = found["naive"], found["hidden"]
    return {
        "naive_extra_bytes": naive_bytes,
        "hidden_extra_bytes": hidden_bytes,
        "hidden_over_naive_bytes": hidden_bytes / naive_bytes,
        "naive_seconds": naive_seconds,
        "hidden_seconds": hidden_seconds,
        "hidden_over_naive_seconds": hidden_seconds / naive_seconds,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

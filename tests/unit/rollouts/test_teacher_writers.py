"""Teachers that write in the student's place, of all prompts or of a part: who answers which, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from mopd.distill.types import Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.in_process import InProcess
from mopd.rollouts.sampler import MixedSampler, TeacherSampler, taught_shares


class Writer:
    """Answers with one token of its own; two microbatches."""

    def __init__(self, token: int) -> None:
        self.token = token

    def load_weights(self, weights: Weights, *, version: int) -> None:
        assert self.token < 10, "a teacher's weights never move"

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        for group, prompt in enumerate(prompts):
            ids_T = np.array([*prompt.token_ids, self.token], dtype=np.int32)
            mask_T = np.arange(len(ids_T)) == len(prompt.token_ids)
            yield [Rollout(prompt, ids_T, mask_T, -mask_T.astype(np.float32), "eos", (0, 0), group, group)]


def test_prompts_are_dealt_by_route_and_rollouts_come_back_in_order() -> None:
    writers: dict[str, Sampler] = {"a": Writer(10), "b": Writer(11), "c": Writer(12)}
    sampler = TeacherSampler(writers, routes={"math": {"a": 0.25, "b": 0.75}, "code": {"c": 1.0}})
    sampler.load_weights(InProcess(torch.nn.Linear(1, 1)), version=7)
    prompts = [Prompt(domain, f"{domain}/{i}", (5, i), "", "") for i in range(4) for domain in ("math", "code")]
    (microbatch,) = sampler.sample(prompts, step=3)
    assert [rollout.prompt for rollout in microbatch] == prompts
    assert [int(rollout.token_ids[2]) for rollout in microbatch] == [10, 12, 11, 12, 11, 12, 11, 12]
    assert [(rollout.group, rollout.index) for rollout in microbatch] == [(i, i) for i in range(8)]
    assert {rollout.version for rollout in microbatch} == {(7, 7)}
    assert [rollout.writer for rollout in microbatch] == ["a", "c", "b", "c", "b", "c", "b", "c"]


def mixed(part: float, steps: int | None = None) -> MixedSampler:
    teachers = TeacherSampler({"t": Writer(10), "u": Writer(11)}, routes={"math": {"t": 1.0}, "code": {"u": 1.0}})
    sampler = MixedSampler(Writer(1), teachers, part=part, steps=steps)
    sampler.load_weights(InProcess(torch.nn.Linear(1, 1)), version=7)
    return sampler


def prompts_of(math: int, code: int) -> list[Prompt]:
    counts = {"math": math, "code": code}
    return [Prompt(domain, f"{domain}/{i}", (5, i), "", "") for domain, n in counts.items() for i in range(n)]


@pytest.mark.parametrize(("part", "math", "code"), [(0.3, 3, 2), (0.5, 5, 4), (0.99, 9, 7), (0.12, 1, 0)])
def test_teachers_answer_their_part_of_every_domain(part: float, math: int, code: int) -> None:
    prompts = prompts_of(10, 8)
    rollouts = [rollout for microbatch in mixed(part).sample(prompts, step=3) for rollout in microbatch]
    assert sorted(rollout.index for rollout in rollouts) == list(range(18))
    assert sorted(rollout.group for rollout in rollouts) == list(range(18))
    assert all(rollout.prompt is prompts[rollout.group] for rollout in rollouts)
    by_teacher = [rollout for rollout in rollouts if rollout.writer is not None]
    assert [sum(r.domain == domain for r in by_teacher) for domain in ("math", "code")] == [math, code]
    written = {"t": 10, "u": 11, None: 1}
    assert all(int(rollout.token_ids[-1]) == written[rollout.writer] for rollout in rollouts)
    assert all(rollout.writer in (None, {"math": "t", "code": "u"}[rollout.domain]) for rollout in rollouts)
    shares = {"math": math / 10, "code": code / 8}
    assert taught_shares(rollouts) == {f"off_policy/{name}": pytest.approx(x) for name, x in shares.items() if x}


def test_teachers_write_in_the_first_steps_alone() -> None:
    for step, writes in ((0, True), (4, True), (5, False), (6, False)):
        rollouts = [r for microbatch in mixed(0.5, steps=5).sample(prompts_of(4, 4), step=step) for r in microbatch]
        assert any(rollout.writer is not None for rollout in rollouts) == writes
        assert len(rollouts) == 8
        assert bool(taught_shares(rollouts)) == writes


def test_their_places_are_spread_over_a_domain() -> None:
    rollouts = [rollout for microbatch in mixed(0.25).sample(prompts_of(8, 4), step=0) for rollout in microbatch]
    assert sorted(r.group for r in rollouts if r.writer is not None) == [3, 7, 11]

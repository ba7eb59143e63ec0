"""Teachers that write in the student's place: who answers which prompt, in which order, under which version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mopd.distill.types import Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.in_process import InProcess
from mopd.rollouts.sampler import TeacherSampler


class Writer:
    """Answers with one token of its own; two microbatches."""

    def __init__(self, token: int) -> None:
        self.token = token

    def load_weights(self, weights: Weights, *, version: int) -> None:
        raise AssertionError("a writer's weights never move")

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

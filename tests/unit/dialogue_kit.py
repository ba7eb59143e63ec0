"""Episodes whose turns a policy writes: a function of the conversation's text, in the place of a model."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mopd.distill.recipe import EnvironmentSource
from mopd.distill.types import Prompt, Rollout, align_logits
from mopd.rollouts.environments import environment_task
from mopd.rollouts.environments.episodes import EpisodeSampler, GoldWriter
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.tokenizer import build_tokenizer, closing_id, encode, to_prompt

TOKENIZER: Any = build_tokenizer([string.printable] * 2, 130)
CLOSING = closing_id(TOKENIZER)


class Policy(GoldWriter):
    """Writes what ``says`` makes of the conversation so far."""

    def __init__(self, says: Callable[[str], str], tokenizer: Any = TOKENIZER) -> None:
        super().__init__(tokenizer, {}, closing_id(tokenizer))
        self._says, self._of = says, tokenizer

    def write(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], *, step: int, greedy: bool, max_new_tokens: int
    ) -> list[Rollout]:
        written = []
        for prompt, number in zip(prompts, numbers, strict=True):
            text = self._says(str(self._of.decode(prompt.token_ids)))
            gold = Prompt(prompt.domain, prompt.id, prompt.token_ids, prompt.text, text)
            written += super().write([gold], [number], step=step, greedy=greedy, max_new_tokens=max_new_tokens)
        return written


def task_of(environment: str | dict[str, Any], **leaves: Any) -> EnvironmentTask:
    given = {"turns": 6, "max_tokens_turn": 40, "max_tokens": 600, "seconds": 100.0, **leaves}
    source = EnvironmentSource.model_validate({"environment": environment, **given})
    return environment_task(source, domain="played", tokenizer=TOKENIZER)


def prompts_of(task: EnvironmentTask, n: int, split: str = "train", tokenizer: Any = TOKENIZER) -> list[Prompt]:
    examples = [task.example(seed=0, split=split, index=i) for i in range(n)]
    return [to_prompt(tokenizer, domain="played", example=example) for example in examples]


def played(
    task: EnvironmentTask, says: Callable[[str], str], prompts: Sequence[Prompt], *, samples: int = 1,
    greedy: bool = False, tokenizer: Any = TOKENIZER,
) -> list[Rollout]:  # fmt: skip
    sampler = EpisodeSampler(
        Policy(says, tokenizer), {"played": task}, tokenizer, samples_per_prompt=samples, max_new_tokens=40,
        end_token_ids=(closing_id(tokenizer),),
    )  # fmt: skip
    return [rollout for microbatch in sampler.sample(prompts, step=0, greedy=greedy) for rollout in microbatch]


def assert_recorded_as_a_plain_forward_has_it(model: Any, rollout: Rollout) -> None:
    """The log-probabilities of what was written are those of one forward of the whole sequence."""
    ids_1T = torch.from_numpy(rollout.token_ids[None].astype(np.int64))
    with torch.no_grad():
        logits_TV = align_logits(model(input_ids=ids_1T).logits)[0]
    expected_T = logits_TV.log_softmax(-1).gather(-1, ids_1T[0, :, None])[:, 0].numpy()
    np.testing.assert_allclose(rollout.sampler_logprobs[rollout.loss_mask], expected_T[rollout.loss_mask], atol=1e-4)


def ids_of(*parts: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """The ids and the mask of texts that the model wrote, each closed, or was given."""
    ids, mask = list[int](), list[bool]()
    for text, wrote in parts:
        own = [*encode(TOKENIZER, text), *([CLOSING] if wrote else [])]
        ids += own
        mask += [wrote] * len(own)
    return ids, mask

"""What a verifier reads is what the policy wrote: every token but the EOS that closes it."""

from __future__ import annotations

import numpy as np
import pytest

from mopd.distill.types import Prompt, Rollout
from mopd.rollouts.rewards import RewardGrader
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import build_tokenizer, completion_text, control_ids, encode, to_prompt

TOKENIZER = build_tokenizer(["0 1 2 3 4 5 6 7 8 9 + - * / = ? sum of abc"] * 3, 60)
PAD, EOS, UNKNOWN = 0, 1, 2


def rollout_of(written: list[int], *, prompt: Prompt | None = None) -> Rollout:
    """A rollout that wrote these tokens; its finish says what the last one is."""
    prompt = prompt or Prompt("math", "q", encode(TOKENIZER, "1+2="), "1+2=", "3")
    ids = np.array([*prompt.token_ids, *written], dtype=np.int32)
    return Rollout(
        prompt=prompt,
        token_ids=ids,
        loss_mask=np.arange(len(ids)) >= len(prompt.token_ids),
        sampler_logprobs=np.zeros(len(ids), dtype=np.float32),
        finish="eos" if written and written[-1] == EOS else "length",
        version=(0, 0),
        group=0,
        index=0,
    )


ONE, TWO, NOUGHT = (encode(TOKENIZER, digit)[0] for digit in "120")
WRITTEN = [
    ([ONE, TWO, NOUGHT, EOS], "120"),
    ([ONE, TWO, NOUGHT], "120"),  # cut by length: the last token is kept
    ([ONE, PAD, TWO, UNKNOWN, NOUGHT, EOS], "1<pad>2<unk>0"),
    ([ONE, EOS, EOS], "1<eos>"),  # one EOS closes; the one before it was written
    ([ONE, EOS, TWO], "1<eos>2"),
    ([EOS, ONE], "<eos>1"),
    ([PAD, PAD], "<pad><pad>"),
    ([EOS], ""),
    ([], ""),
]


@pytest.mark.parametrize(("written", "text"), WRITTEN)
def test_only_the_closing_eos_is_cut(written: list[int], text: str) -> None:
    assert completion_text(TOKENIZER, rollout_of(written)) == text


def test_special_tokens_inside_an_answer_cost_the_reward() -> None:
    task = TASKS["arithmetic"]
    examples = [task.example(seed=1, split="train", index=i) for i in range(40)]
    tokenizer = build_tokenizer([text for e in examples for text in (e.text, e.answer)], 100)
    grader = RewardGrader({"math": task}, tokenizer)
    for example in examples[:5]:
        prompt = to_prompt(tokenizer, domain="math", example=example)
        answer = list(encode(tokenizer, example.answer))
        assert UNKNOWN not in answer
        *begin, last = answer  # a token before the last one stands inside the number that is looked at
        written = [[*answer, EOS], answer, [*begin, PAD, last, EOS], [*begin, UNKNOWN, last, EOS]]
        scored = grader.score([[rollout_of(w, prompt=prompt) for w in written]])
        assert [s.reward for s in scored] == [1.0, 1.0, 0.0, 0.0]


def test_control_tokens_are_the_named_ones_and_all_that_are_marked_so() -> None:
    tokenizer = build_tokenizer(["plain text"], 60)
    assert control_ids(tokenizer) == (0, 1, 2)
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    tokenizer.add_tokens(["word"])
    assert control_ids(tokenizer) == (0, 1, 2, len(tokenizer) - 2)

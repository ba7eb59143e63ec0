"""What a verifier reads is what the policy wrote: every token but the EOS that closes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from mopd.distill.types import Prompt, Rollout
from mopd.rollouts.rewards import RewardGrader
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import (
    build_tokenizer,
    completion_ids,
    completion_text,
    context_of,
    control_ids,
    encode,
    end_token_ids,
    to_prompt,
    token_count,
)

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
    grader = RewardGrader({"math": task}, tokenizer, truncated="learn")
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


TURNS = (
    "{% for m in messages %}{{ '<turn>' + m.role + ' ' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant ' }}{% endif %}"
)


def chat_tokenizer():
    tokenizer = build_tokenizer(["question answer user assistant system"], 60)
    tokenizer.add_tokens(["<turn>", "<end>", "<call>"], special_tokens=True)
    tokenizer.chat_template = TURNS
    return tokenizer


@pytest.mark.parametrize(
    ("template", "generation", "config", "ends"),
    [
        (None, None, {}, ["<eos>"]),
        (None, None, {"eos_token_id": "<call>"}, ["<eos>", "<call>"]),
        (None, {"eos_token_id": ["<eos>", "<end>"]}, {}, ["<eos>", "<end>"]),
        (TURNS, None, {"eos_token_id": "<eos>"}, ["<end>", "<eos>"]),
        (TURNS, {"eos_token_id": ["<eos>", "<call>"]}, {"eos_token_id": "<eos>"}, ["<end>", "<eos>", "<call>"]),
        (TURNS.replace("<end>", "\n"), {"eos_token_id": "<call>"}, {}, ["<eos>", "<call>"]),
        ("{{ raise_exception('no') }}", None, {}, ["<eos>"]),
    ],
    ids=str,
)
def test_what_ends_a_completion_is_said_by_tokenizer_template_and_generation_config(
    tmp_path: Path, template: str | None, generation: dict | None, config: dict, ends: list[str]
) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template

    def ids(settings: dict) -> str:
        def number(token: str | list[str]) -> int | list[int]:
            return [*map(number, token)] if isinstance(token, list) else tokenizer.convert_tokens_to_ids(token)

        return json.dumps({key: number(token) for key, token in settings.items()})

    (tmp_path / "config.json").write_text(ids(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(ids(generation))
    found = end_token_ids(tokenizer, str(tmp_path))
    assert tokenizer.convert_ids_to_tokens([*found]) == ends
    assert completion_ids(tokenizer, "answer")[-1] == found[0]


def test_a_tokenizer_has_as_many_ids_as_its_last_one_says() -> None:
    tokenizer = chat_tokenizer()
    assert token_count(tokenizer) == len(tokenizer) == tokenizer.convert_tokens_to_ids("<call>") + 1


def test_the_context_is_the_least_that_tokenizer_and_configuration_say(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["some words"] * 2, 60)
    assert context_of(tokenizer) is None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 700}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert context_of(loaded) == 700
    loaded.model_max_length = 500
    assert context_of(loaded) == 500
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 300}}))
    assert context_of(loaded) == 300

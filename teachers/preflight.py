"""Is this teacher usable by this student? It scores the student's token ids, so they must mean the same to both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

SPECIAL = ("pad_token", "eos_token", "bos_token", "unk_token")
CONVERSATION: list[dict[str, str]] = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]
SHOWN = 3
"""How many differing tokens a message names."""


def compare_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """What tells a teacher's tokenizer from the student's: predicates such as "has 151 tokens, the student's 133".

    The whole vocabulary is compared by content, for two of one size may hold other tokens; then the special tokens and
    what the chat template makes of a conversation. Empty where they are the same.
    """
    problems = [*_vocabularies(teacher.get_vocab(), student.get_vocab())]
    for name in SPECIAL:
        theirs, ours = getattr(teacher, name, None), getattr(student, name, None)
        if theirs != ours:
            problems.append(f"has the {name} {theirs!r}, the student's is {ours!r}")
    if _rendered(teacher) != _rendered(student):
        problems.append(
            f"writes a conversation as {_rendered(teacher)!r}, the student's chat template as {_rendered(student)!r}"
        )
    return problems


def compare_heads(teacher: Any, student: Any, *, full: bool) -> list[str]:
    """What tells the vocabulary of a teacher's output head from the student's.

    Args:
        teacher, student: transformers configurations.
        full: whether whole distributions are compared, which needs heads of one size; otherwise the teacher's must be
            at least as large as the student's.
    """
    theirs, ours = teacher.get_text_config().vocab_size, student.get_text_config().vocab_size
    if theirs < ours or (full and theirs != ours):
        needed = "whole distributions are compared, so they must be equal" if full else "it must score all of them"
        return [f"has an output head of {theirs} tokens, the student's has {ours}; {needed}"]
    return []


def _vocabularies(teacher: dict[str, int], student: dict[str, int]) -> Sequence[str]:
    if teacher == student:
        return []
    theirs, ours = ({i: token for token, i in vocabulary.items()} for vocabulary in (teacher, student))
    different = sorted(i for i in {*theirs, *ours} if theirs.get(i) != ours.get(i))
    examples = ", ".join(f"id {i} is {theirs.get(i)!r} and not {ours.get(i)!r}" for i in different[:SHOWN])
    return [f"has {len(teacher)} tokens, the student's {len(student)}, and {len(different)} ids differ ({examples})"]


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A conversation in the tokenizer's chat template; None where it has none."""
    if not tokenizer.chat_template:
        return None
    return str(tokenizer.apply_chat_template(CONVERSATION, tokenize=False))

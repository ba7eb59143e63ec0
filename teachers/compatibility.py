"""Is this teacher usable by this student? It scores the student's token ids, so they must mean the same to both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

SPECIAL = ("pad_token", "eos_token", "bos_token", "unk_token")
_ASKED: list[dict[str, str]] = [{"role": "user", "content": "2+2="}]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "4"}]
_GUIDED = [{"role": "system", "content": "Be brief."}, *_ASKED]
PROBES: dict[str, tuple[list[dict[str, str]], bool]] = {
    "a conversation": (_ANSWERED, False),
    "a question that waits for its answer": (_ASKED, True),
    "a conversation with a system message": (_GUIDED, False),
    "a second question": ([*_ANSWERED, {"role": "user", "content": "3+3="}], True),
}
"""Conversations that chat templates are compared on, each with whether the answer is asked for."""
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
"""What is said of an added token besides its text."""
SHOWN = 3
"""How many differing tokens a message names."""


def compare_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """What tells a teacher's tokenizer from the student's: predicates such as "has 151 tokens, the student's 133".

    The whole vocabulary is compared by content, for two of one size may hold other tokens; then what is said of added
    tokens, the special tokens, and what the chat template makes of conversations. Empty where they are the same.
    """
    problems = [*_vocabularies(teacher.get_vocab(), student.get_vocab())]
    problems += [] if problems else _added_tokens(teacher, student)
    for name in SPECIAL:
        of_teacher, of_student = getattr(teacher, name, None), getattr(student, name, None)
        if of_teacher != of_student:
            problems.append(f"has the {name} {of_teacher!r}, the student's is {of_student!r}")
    for what in PROBES:
        of_teacher, of_student = _rendered(teacher, what), _rendered(student, what)
        if of_teacher != of_student:
            problems.append(f"writes {what} as {of_teacher!r}, the student's chat template as {of_student!r}")
            break  # templates that differ, differ on most of them
    return problems


def compare_heads(teacher: Any, student: Any, *, full: bool, tokens: int = 0) -> list[str]:
    """What tells the vocabulary of a teacher's output head from the student's.

    Args:
        teacher, student: transformers configurations.
        full: whether whole distributions are compared. Where the tokenizer's size is not known, they need heads of one
            size then; otherwise the teacher's must be at least as large as the student's.
        tokens: ids that the tokenizer has, 0 where that is not known. Heads may be padded beyond them, each in its own
            way, for distributions are over the tokenizer's ids alone; and they must reach so far.
    """
    of_teacher, of_student = teacher.get_text_config().vocab_size, student.get_text_config().vocab_size
    if tokens:
        if of_teacher >= tokens:
            return []
        return [f"has an output head of {of_teacher} tokens, and the tokenizer has ids up to {tokens - 1}"]
    if of_teacher < of_student or (full and of_teacher != of_student):
        needed = "whole distributions are compared, so they must be equal" if full else "it must score all of them"
        return [f"has an output head of {of_teacher} tokens, the student's has {of_student}; {needed}"]
    return []


def _vocabularies(teacher: dict[str, int], student: dict[str, int]) -> Sequence[str]:
    if teacher == student:
        return []
    of_teacher, of_student = ({i: token for token, i in vocabulary.items()} for vocabulary in (teacher, student))
    different = sorted(i for i in {*of_teacher, *of_student} if of_teacher.get(i) != of_student.get(i))
    examples = ", ".join(f"id {i} is {of_teacher.get(i)!r} and not {of_student.get(i)!r}" for i in different[:SHOWN])
    return [f"has {len(teacher)} tokens, the student's {len(student)}, and {len(different)} ids differ ({examples})"]


def _added_tokens(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """Whether tokens that were added, such as turns of a chat, are treated alike."""
    of_teacher, of_student = teacher.added_tokens_decoder, student.added_tokens_decoder
    differ = [
        f"id {i} {of_student[i].content!r} has {flag} {getattr(of_teacher[i], flag)}, "
        f"the student's {getattr(of_student[i], flag)}"
        for i in sorted({*of_teacher} & {*of_student})
        for flag in FLAGS
        if getattr(of_teacher[i], flag) != getattr(of_student[i], flag)
    ]
    differ += [f"id {i} is an added token for one of them only" for i in sorted({*of_teacher} ^ {*of_student})]
    return (
        [f"treats {len(differ)} added tokens otherwise ({', '.join(differ[:SHOWN])})"] if differ else []
    )  # not per token


def _rendered(tokenizer: PreTrainedTokenizerBase, probe: str) -> str | None:
    """A probe in the tokenizer's chat template; None where it has none."""
    if not tokenizer.chat_template:
        return None
    conversation, asks = PROBES[probe]
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # a template raises whatever it likes, for example at a system message
        return f"(refused: {error})"

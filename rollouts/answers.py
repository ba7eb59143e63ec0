r"""Where the final answer stands in what a model wrote: after its thinking, in the last box, behind "the answer is".

Pure functions of a text in linear time, shared by the verifiers of numbers, options and formulas.
"""

from __future__ import annotations

import re

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
"""Marks around a thought, of the families that write them into the text."""

OPENED = (*THOUGHTS, ("<|start|>assistant", "<|channel|>final<|message|>"))
"""What a prompt of a model that thinks ends in, and what its answer then comes after; the last is that of harmony."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)[ ]?\{")
_CUT_BOX = re.compile(r"\\(?:boxed|fbox)\s*\Z")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"[\s$,.;*]*(?:(?:\\text\s*\{)?\s*\b(?:and|or)\b\s*\}?)?[\s$,*]*")
_LONGEST_JOIN = 30  # characters between two boxes that are one answer
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswer(?:[*_]{0,3}\s?(?::|=)|(?:[ ]to[ ][^.\n:?]{1,80}?)?(?:['\u2019]s|[ ]is|[ ]was|[ ]equals"
    r"|[ ](?:must|should|would|will)[ ]be)\b)[ ]?(?:then|thus|therefore|simply|just|exactly)?[*_:= ]{0,6}",
    re.IGNORECASE,
)


def after_thinking(text: str) -> str:
    """What follows the last thought of a text; nothing where a thought was cut off.

    A thought may begin in the prompt, so that only its end is in the text.
    """
    for begin, end in THOUGHTS:
        rest = text.rpartition(end)[2]
        text = "" if begin in rest else rest
    return text


def opened_thought(prompt: str) -> str | None:
    """What the answer to a prompt comes after, where the prompt ends inside of a thought; None where it does not."""
    end = prompt.rstrip()
    return next((close for begin, close in OPENED if end.endswith(begin)), None)


def answer_part(text: str, *, prompt: str, after: str | None) -> str | None:
    """The part of a completion that is its answer; None where it has none.

    Args:
        prompt: as the model was given it: one that ends inside of a thought wants that thought to be ended.
        after: the answer is what follows the last occurrence of this text; ``auto``: what follows the thoughts;
            None: all of the text.

    Example:
        ``answer_part("3 + 4 ... </think> 7", prompt="3+4?<think>", after="auto")`` is ``" 7"``, and of ``"3 + 4 ..."``
        it is None.
    """
    if after is None:
        return text
    mark = opened_thought(prompt) if after == "auto" else after
    if mark is not None:
        _, ended, text = text.rpartition(mark)
        if not ended:
            return None
    if after != "auto":
        return text
    for begin, end in THOUGHTS:
        text = text.rpartition(end)[2]
        if begin in text:
            return None
    return text


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``, whose braces may be nested; None if there is no box at all.

    A last box that does not close is an answer that was cut off, and reads as the empty text, whatever stood in boxes
    before it. Boxes with no more than "and", "or" or a comma between them are one answer, joined by commas.
    """
    boxes: list[tuple[int, int, str]] = []  # start, end, content
    reached = 0
    for match in _BOX.finditer(text):
        if match.start() < reached:
            continue  # a box in a box
        end = _closing_brace(text, match.end())
        if end is None:
            return ""
        boxes.append((match.start(), end + 1, text[match.end() : end]))
        reached = end
    if _CUT_BOX.search(text, reached):
        return ""
    if not boxes:
        return None
    joined = [boxes[-1]]
    for box in reversed(boxes[:-1]):  # not per token
        between = text[box[1] : joined[-1][0]]
        if len(between) > _LONGEST_JOIN or not _JOINED.fullmatch(between) or not between.strip("$ \n"):
            break
        joined.append(box)
    contents = list(dict.fromkeys(content.strip() for _, _, content in reversed(joined)))
    inside = ", ".join(contents)
    inner = last_boxed(inside) if len(contents) == 1 and _BOX.match(inside) else None  # a box in a box
    return inside if inner is None else inner


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def marked(text: str) -> str | None:
    """What follows the last ``####`` on its line, or stands in the last ``<answer>``; None if there is neither."""
    found_hashes, found_tags = _HASHES.findall(text), _TAG.findall(text)
    return (found_hashes or found_tags or [None])[-1]


def after_phrase(text: str) -> str | None:
    """What follows the last "the answer is" or "Answer:", to the end of the text; None if there is none."""
    end = None
    for match in _PHRASE.finditer(text):
        end = match.end()
    return None if end is None else text[end:]

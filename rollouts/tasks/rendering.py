"""How a problem becomes the text that a model is given: turns in the student's chat template, or the text alone.

What a row says can spell a control token, such as the end of a turn. It is refused, or set between two marks that no
text has, so that it is found again in what the template makes of it (`control_tokens`).

Messages are handed to the template whole. What a template would leave out, or write as Python shows it, is refused: a
role that it does not name, a call of a tool that it does not write, a message whose content does not come out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.errors import UserError
from mopd.distill.recipe import Source
from mopd.rollouts.tasks.row_meaning import Message, Problem, plain_content, short, with_suffix
from mopd.rollouts.tokenizer import control_texts, encode

PLAIN_ROLES = ("system", "user", "assistant")
"""Roles that every chat template is taken to know; others must stand in its text."""
RESERVED = ("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message")
"""Arguments of a chat template that are given by other leaves, or by what a prompt is."""
BETWEEN_SHOTS, BEFORE_ANSWER = "\n\n", " "
"""Between shots, and between a question and its answer, in raw text; as lm-evaluation-harness has it."""
PROBE = "probe4711"
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Characters that are in no text: Unicode keeps them for programs' own use."""


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt as text, and its parts, as (start, end), whose control tokens are written as the letters they are."""

    text: str
    letters: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Reworded:
    """How a problem is put to a reader who is asked it otherwise than the student.

    Attributes:
        question: what is made of the question's text.
        system: the system message in the place of the problem's own; None: its own.
        tokenizer: whose chat template writes the turns.
    """

    question: Callable[[str], str]
    system: str | None
    tokenizer: PreTrainedTokenizerBase


class Renderer:
    """Writes problems for one student.

    Args:
        source: says how.
        tokenizer: the student's; without one the contents of messages are joined as bare lines, which serves to train a
            tokenizer and to check verifiers, and is given to no model.
        shots: shown with their answers before each question.

    Raises:
        UserError: the tokenizer has no chat template and one is needed, or the template can't take what it is given.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase | None, shots: Sequence[Problem]) -> None:
        self._source, self._tokenizer, self._shots = source, tokenizer, shots
        self._template = _template_of(tokenizer)
        self.in_turns = self._template != "" if source.template == "auto" else source.template == "chat"
        self._bos = "" if tokenizer is None else own_bos(tokenizer)
        self._control: re.Pattern[str] | None = None  # any control token as it is written
        if tokenizer is not None and (texts := control_texts(tokenizer)):
            self._control = re.compile("|".join(map(re.escape, texts)))
        self._takes_parts: bool | None = None
        self._text_is_checked = False
        if tokenizer is None:
            return
        where = f"dataset {source.path!r}"
        if self.in_turns and not self._template:
            raise UserError(
                f"{where}: `template: chat`, and the student's tokenizer has no chat template; take a student that has "
                "one, or `template: raw`"
            )
        if problems := [f"{where}: {problem}" for problem in [*self._idle(), *self._unspelled()]]:
            raise UserError(*problems)

    def _idle(self) -> list[str]:
        source, problems = self._source, []
        if not self.in_turns:
            leaves = {"template_arguments": bool(source.template_arguments), "tools": source.tools is not None}
            return [
                f"`{leaf}` is given to a chat template, and the student's tokenizer has none; remove it"
                for leaf, given in leaves.items()
                if given
            ]
        for name in source.template_arguments:
            if name in RESERVED:
                problems.append(f"`template_arguments.{name}` is no argument of the template's own; remove it")
            elif not re.search(rf"\b{re.escape(name)}\b", self._template):
                problems.append(f"`template_arguments.{name}` does not stand in the student's chat template; remove it")
        if source.tools is not None and not re.search(r"\btools\b", self._template):
            problems.append("`tools` is given, and the student's chat template writes no tools; remove it")
        return problems

    def _unspelled(self) -> list[str]:
        """Control tokens that the tokenizer writes as nothing else."""
        if self._tokenizer is None or self._control_tokens != "text":
            return []
        try:
            for text in control_texts(self._tokenizer):
                encode(self._tokenizer, text, letters=[(0, len(text))])
        except ValueError as error:
            return [f"`control_tokens: text`, and {error}; take `refuse`"]
        return []

    def check(self, problem: Problem) -> None:
        """Write a problem to see whether the student can be given it; of questions in plain text the first is enough.

        Raises:
            UserError: it is a chat, and there is no chat template for any.
            ValueError: as :meth:`written`.
        """
        if isinstance(problem.asked, str) and self._text_is_checked:
            if self._control_tokens == "refuse":
                self._guarded([problem.asked, problem.system])
            return
        if not isinstance(problem.asked, str) and self._tokenizer is not None and not self.in_turns:
            why = "`template: raw` writes none" if self._template else "the student's tokenizer has no chat template"
            raise UserError(
                f"dataset {self._source.path!r}: column {self._source.prompt!r} holds chat messages, and {why}; take a "
                f"student that has a chat template, or a column of plain text, for example "
                f"`{self._source.prompt}.0.content`"
            )
        self.written(problem)
        self._text_is_checked = self._text_is_checked or isinstance(problem.asked, str)

    def messages(self, problem: Problem) -> list[Message]:
        """The prompt as a conversation, shots and system message with it: what a chat template is given.

        Raises:
            ValueError: it offers tools, which messages do not carry.
        """
        if problem.tools is not None:
            raise ValueError("offers tools")
        return self._turns(problem)

    def reworded(self, problem: Problem, how: Reworded) -> Written:
        """The prompt as another reader is given it.

        Raises:
            ValueError: as :meth:`written`.
        """
        problem = problem if how.system is None else replace(problem, system=how.system)
        same = how.tokenizer is self._tokenizer
        renderer = self if same else Renderer(self._source, how.tokenizer, self._shots)
        return renderer.written(problem, how.question)

    def written(self, problem: Problem, reword: Callable[[str], str] | None = None) -> Written:
        """The prompt as the model is given it, up to where it begins to write.

        Args:
            reword: what is made of the question, the text of a chat's last message; None: nothing.

        Raises:
            ValueError: the template refuses the problem or would leave a part of it out, or the row spells a control
                token; the message is the end of a sentence that begins with the row.
        """
        question = with_suffix(self._source, problem)
        if self._tokenizer is None and not isinstance(question, str):
            return Written("\n".join(plain_content(message) for message in self._turns(problem)))
        if self._tokenizer is None or not self.in_turns:
            assert isinstance(question, str)
            bare = self._bare(problem, question if reword is None else reword(question))
            return _unmarked(self._bos + self._guarded(bare))
        turns = self._turns(problem)
        if reword is not None:
            asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
            if asked is None:
                raise ValueError("has no message of a user, whose question could be put in other words")
            turns = [{**turn, "content": reword(plain_content(turn))} if turn is asked else turn for turn in turns]
        return _unmarked(self._in_template(self._guarded(turns), self._guarded(problem.tools)))

    @property
    def _control_tokens(self) -> str:
        how = self._source.control_tokens
        return ("refuse" if self.in_turns else "tokens") if how == "auto" else how

    def _guarded(self, value: Any) -> Any:
        """Text, or a message and what it is made of, without control tokens, or with each between marks."""
        if self._control is None or self._control_tokens == "tokens":
            return value
        if isinstance(value, Mapping):
            return {key: self._guarded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._guarded(item) for item in value]
        if not isinstance(value, str) or (match := self._control.search(value)) is None:
            return value
        if self._control_tokens == "refuse":
            raise ValueError(
                f"has the control token {match[0]!r} in the text {short(value[max(0, match.start() - 20) :])}; "
                "`control_tokens: text` writes it as letters, `tokens` takes it for what it stands for"
            )
        return self._control.sub(rf"{_OPEN}\g<0>{_CLOSE}", value)

    def _bare(self, problem: Problem, question: str) -> str:
        parts = [] if problem.system is None else [problem.system]
        for shot in self._shots:
            asked = with_suffix(self._source, shot)
            assert isinstance(asked, str)
            joint = "" if not asked or asked[-1].isspace() else BEFORE_ANSWER
            parts.append(asked + joint + shot.answer)
        return BETWEEN_SHOTS.join([*parts, question])

    def _turns(self, problem: Problem) -> list[Message]:
        own = self._own_turns(problem)
        shown = [turn for shot in self._shots for turn in (*self._own_turns(shot), _answer(shot))]
        systems = [turn for turn in own if turn["role"] == "system"]
        if problem.system is not None:
            systems = [{"role": "system", "content": problem.system}]
        elif not shown:
            return own
        return [*systems, *(turn for turn in [*shown, *own] if turn["role"] != "system")]

    def _own_turns(self, problem: Problem) -> list[Message]:
        question = with_suffix(self._source, problem)
        return [{"role": "user", "content": question}] if isinstance(question, str) else list(question)

    def _in_template(self, turns: list[Message], tools: list[Any] | None) -> str:
        for place, turn in enumerate(turns):
            if not self._knows(turn["role"]):
                raise ValueError(
                    f"message {place} has the role {turn['role']!r}, which the student's chat template does not know; "
                    f"`roles` says what it is called there, for example `roles: {{{turn['role']}: user}}`"
                )
        if any(isinstance(turn["content"], list) for turn in turns) and not self._reads_parts():
            turns = [
                {**turn, "content": plain_content(turn)} if isinstance(turn["content"], list) else turn
                for turn in turns
            ]
        failed: list[str] = []
        for form in _forms(turns):
            text = self._tried(form, tools, failed)
            if any(turn["content"] is None for turn in form):
                # Null says the same as empty content; a template that does not ask for null writes `None`, or breaks.
                empty = self._tried([{**turn, "content": turn["content"] or ""} for turn in form], tools, failed)
                if text is None or (empty is not None and text.count("None") > empty.count("None")):
                    text = empty
            if text is not None:
                _refuse_left_out(text, form)
                return text
        raise ValueError(
            f"the student's chat template refuses the messages {short(turns)}: {failed[0]}; fix the rows, or take a "
            "student whose template takes them"
        )

    def _tried(self, turns: list[Message], tools: list[Any] | None, failed: list[str]) -> str | None:
        """The turns in the template; where it refuses them, None, and why at the end of ``failed``."""
        try:
            return self._apply(turns, tools)
        except Exception as error:  # templates raise what they like
            failed.append(str(error))
            return None

    def _apply(self, turns: list[Message], tools: list[Any] | None) -> str:
        assert self._tokenizer is not None
        given = {"tools": tools} if tools is not None else {}
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **given, **self._source.template_arguments
            )
        )

    def _knows(self, role: str) -> bool:
        return role in PLAIN_ROLES or re.search(rf"""['"]{re.escape(role)}['"]""", self._template) is not None

    def _reads_parts(self) -> bool:
        """Whether the template reads content that is a list of parts; else it is given their text, a line each."""
        if self._takes_parts is None:
            try:
                text = self._apply([{"role": "user", "content": [{"type": "text", "text": PROBE}]}], None)
            except Exception:
                text = ""
            self._takes_parts = PROBE in text and not re.search(rf"['\"]{PROBE}['\"]", text)
        return self._takes_parts


def _unmarked(marked: str) -> Written:
    """A text without its marks, and the parts that stood between them.

    Raises:
        ValueError: the template wrote a mark in another way, or took a marked part apart.
    """
    parts = re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}", marked)
    text, letters = "", []
    for place, part in enumerate(parts):
        if place % 2:
            letters.append((len(text), len(text) + len(part)))
        text += part
    if any(mark in text for mark in (_OPEN, _CLOSE, "\\ufdd0", "\\ufdd1")):
        raise ValueError(
            "has a control token in it, and the student's chat template takes that text apart; `control_tokens: refuse`"
        )
    return Written(text, tuple(letters))


def _template_of(tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None or not tokenizer.chat_template:
        return ""
    return tokenizer.get_chat_template() if isinstance(tokenizer.chat_template, dict) else tokenizer.chat_template


def own_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS that a tokenizer puts before a text by itself; empty where it puts none."""
    bos = tokenizer.bos_token_id
    whole = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert isinstance(whole, list)
    assert isinstance(bare, list)
    return str(tokenizer.bos_token) if bos is not None and whole[:1] == [bos] and bare[:1] != [bos] else ""


def _answer(shot: Problem) -> Message:
    return {"role": "assistant", "content": shot.answer}


def _forms(turns: list[Message]) -> list[list[Message]]:
    """The ways in which calls of tools may be handed to a template, the documented one of transformers first.

    Arguments of a call are a mapping there, and JSON text on the wire, which some templates need.
    """
    if not any(isinstance(turn.get("tool_calls"), list) for turn in turns):
        return [turns]
    return [[_with_arguments(turn, how) for turn in turns] for how in (_as_mapping, _as_json)]


def _with_arguments(turn: Message, how: Callable[[Any], Any]) -> Message:
    calls = turn.get("tool_calls")
    return {**turn, "tool_calls": [_call(call, how) for call in calls]} if isinstance(calls, list) else turn


def _call(call: Any, how: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], how)}
    return {**call, "arguments": how(call["arguments"])} if "arguments" in call else call


def _as_mapping(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _refuse_left_out(text: str, turns: Sequence[Message]) -> None:
    for place, turn in enumerate(turns):
        content = turn["content"]
        if isinstance(content, str):
            # Thoughts of earlier turns are left out by the templates of models that think.
            visible = content.rpartition("</think>")[2] if turn["role"] == "assistant" else content
            if not _stands(visible, text):
                raise ValueError(
                    f"message {place} of role {turn['role']!r} is left out by the student's chat template; take the "
                    "message out, or a student whose template writes it"
                )
        for call in turn.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, Mapping) else {}
            arguments = _as_mapping(function.get("arguments"))
            values = arguments.values() if isinstance(arguments, Mapping) else [arguments]
            parts = [function.get("name"), *(value for value in values if isinstance(value, str | int | float))]
            if not all(_stands(str(part), text) for part in parts if not isinstance(part, bool)):
                raise ValueError(
                    f"message {place} calls tool {function.get('name')!r}, which the student's chat template leaves "
                    "out; take a student whose template writes calls, or such rows out"
                )


def _stands(part: str, text: str) -> bool:
    part = part.strip()
    return (
        part in text or json.dumps(part)[1:-1] in text or json.dumps(part, ensure_ascii=False)[1:-1] in text
    )  # not per token

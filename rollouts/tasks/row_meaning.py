"""What a row of a dataset means, as its settings say: what is asked, what is right. Pure: settings and row -> Problem.

Nothing is guessed: a cell that isn't what its leaf says is refused with a sentence that says what to write.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mopd.distill.recipe import Source
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.recipe.source import RUNS_PROGRAMS, columns_of, is_template, template_parts
from mopd.rollouts.input_output import cases_text
from mopd.rollouts.tasks.tables import WrittenFloat
from mopd.rollouts.verifiers import chosen_letter, gold_problem

Message: TypeAlias = dict[str, Any]
"""One message of a chat as templates take it: role, content (text, parts or None), and whatever else it has."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICES = 10
"""Options that verifier choice can tell apart."""
LONGEST_TEXT = 10_000_000
"""Letters of a prompt or an answer; no model has a context for so many."""
WHOLE = 2**53
"""From here on not every whole number is a float."""
SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One question and what is right.

    Attributes:
        asked: the question with its options: text, or chat messages that do not end in the assistant's answer.
        golds: the gold answers, each of them right; none for a verifier of a user's own that needs none.
        tests: unit tests, where they stand apart from the answer.
        continues: the code that an answer goes on from.
        system: the recipe's system message, filled in; None where it gives none.
        tools: what the chat template is given as tools.

    Example:
        With ``options: choices`` and ``answer_names: index`` the row ``{question: "2+2?", choices: ["3", "4"],
        answer: 1}`` is ``Problem("2+2?\\nA. 3\\nB. 4", ("B",))``.
    """

    asked: str | list[Message]
    golds: tuple[str, ...]
    tests: str | None = None
    continues: str | None = None
    system: str | None = None
    tools: list[Any] | None = None

    @property
    def answer(self) -> str:
        """The first gold answer; empty where there is none."""
        return self.golds[0] if self.golds else ""

    @property
    def gold(self) -> str:
        """What an answer is held against: the unit tests where they stand apart, else the gold answer."""
        return self.answer if self.tests is None else self.tests

    @property
    def canonical(self) -> str:
        """What the question says, without differences of white space: what decides its split."""
        if isinstance(self.asked, str):
            return " ".join(self.asked.split())
        return json.dumps([_canonical(message) for message in self.asked])


def _canonical(message: Message) -> list[Any]:
    content = message["content"]
    text = " ".join(content.split()) if isinstance(content, str) else content
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    return [message["role"], text, more] if more else [message["role"], text]


def read_row(source: Source, row: Mapping[str, Any]) -> Problem:
    """A row as its settings say.

    Raises:
        ValueError: a column holds what it can't; the message is the end of a sentence that begins with the row.
    """
    asked, answered = _asked(source, row)
    tests = None if source.tests is None else _tests(source, row)
    golds = () if source.answer is None else _golds(source, row, answered)
    options: list[str] = []
    if source.options is not None:
        options, labels = _options(source, row)
        golds = tuple(_letter(source, gold, options, labels) for gold in golds)
        asked = _with_text(asked, "".join(f"\n{_option_line(source, *pair)}" for pair in _lettered(options)), "options")
    if len(asked) == 0 or (isinstance(asked, str) and not asked.strip()):
        raise ValueError(f"`{source.prompt}` is {short(asked)}, which is neither text nor a list of chat messages")
    continues = None if source.continues is None else text_of(cell(row, source.continues), source.continues)
    system = None if source.system is None else _system(source.system, row)
    tools = None if source.tools is None else _tools(source.tools, cell(row, source.tools))
    problem = Problem(asked, golds, tests, continues, system, tools)
    _refuse_unusable(source, problem)
    return problem


def _refuse_unusable(source: Source, problem: Problem) -> None:
    for leaf, text in (("prompt", content_of(problem.asked)), ("answer", problem.answer)):
        if len(text) > LONGEST_TEXT:
            raise ValueError(
                f"`{getattr(source, leaf)}` has {len(text):,} letters, and at most {LONGEST_TEXT:,} are read"
            )
    if is_plugin(source.verifier):
        return
    column = source.answer if problem.tests is None else source.tests
    for gold in problem.golds if problem.tests is None else (problem.tests,):
        if reason := gold_problem(source.verifier, gold):
            hint = "; `options` and `answer_names` say what else an answer may be"
            hint = hint if source.verifier == "choice" and source.options is None else ""
            raise ValueError(f"`{column}`, {short(gold)}, {reason} (verifier {source.verifier!r}){hint}")


# ---- cells


def cell(row: Mapping[str, Any], path: str) -> Any:
    """What a row holds at a path: a column of that name, or keys and places inside nested ones, joined by points.

    Raises:
        ValueError: there is nothing at the path; the message names the first part that is missing.
    """
    if path in row:
        return row[path]
    value: Any = row
    walked: list[str] = []
    for part in path.split("."):
        if isinstance(value, str) and walked:
            value = _parsed(value)
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and _is_place(part, value):
            value = value[int(part)]
        else:
            where = f"`{'.'.join(walked)}` is {short(value)}" if walked else f"the row has {_columns(row)}"
            raise ValueError(f"has no `{path}`: {where}, in which there is no {part!r}")
        walked.append(part)
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_float=WrittenFloat)
    except ValueError:
        return text


def _is_place(part: str, values: Sequence[Any]) -> bool:
    digits = part.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -len(values) <= int(part) < len(values)


def _columns(row: Mapping[str, Any]) -> str:
    names = list(row)
    return ", ".join(map(repr, names[:SHOWN_COLUMNS])) + (" ..." if len(names) > SHOWN_COLUMNS else "")


def text_of(value: Any, where: str, *, lines: bool = False) -> str:
    """A cell as text: numbers as they are written, dates as ISO 8601; where ``lines``, a list of texts as lines.

    Raises:
        ValueError: it is neither.
    """
    if lines and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, str):
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    if isinstance(value, float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"`{where}` is {value}, which is no number")
        if abs(value) >= WHOLE:
            raise ValueError(f"`{where}` is {value!r}, a number that was rounded as it was read; write it as text")
        return repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    raise ValueError(f"`{where}` is {short(value)}, which is neither text nor a number")


def _key_of(value: Any) -> str:
    """A plain cell as recipes write it: null, true and false as YAML has them."""
    return json.dumps(value) if value is None or isinstance(value, bool) else text_of(value, "value")


def has_value(row: Mapping[str, Any], path: str, wanted: Any) -> bool:
    """Whether a row has one of the values that `filter` names; one that has nothing plain there has not."""
    values = wanted if isinstance(wanted, list) else [wanted]
    try:
        return _key_of(cell(row, path)) in {_key_of(value) for value in values}
    except ValueError:
        return False


def domain_of(row: Mapping[str, Any], path: str) -> str:
    """The domain that a row names; null is called so.

    Raises:
        ValueError: it names none.
    """
    return _key_of(cell(row, path))


def fill(template: str, row: Mapping[str, Any]) -> str:
    """A template with a row's columns in it; a list of texts as lines.

    Raises:
        ValueError: a column is missing, or is no text.
    """
    texts = [
        text + ("" if path is None else _filled_in(row, path, template)) for text, path in template_parts(template)
    ]
    return "".join(texts)


def _filled_in(row: Mapping[str, Any], path: str, template: str) -> str:
    try:
        return text_of(cell(row, path), path, lines=True)
    except ValueError as error:
        hint = f"; a brace that is meant is written twice: {{{{{path}}}}}" if str(error).startswith("has no") else ""
        raise ValueError(f"{error}{hint}") from error


def _written(row: Mapping[str, Any], leaf: str, name: str, *, lines: bool) -> str:
    """The text that a leaf means, as a path or a template."""
    return fill(leaf, row) if is_template(leaf) else text_of(cell(row, leaf), leaf, lines=lines)


def short(value: object) -> str:
    """A value for a message, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- what is asked


def _asked(source: Source, row: Mapping[str, Any]) -> tuple[str | list[Message], bool]:
    """The question, and whether it was cut before an answer of the assistant."""
    if is_template(source.prompt):
        return fill(source.prompt, row), False
    value = cell(row, source.prompt)
    if not isinstance(value, list):
        if not isinstance(value, str):
            raise ValueError(f"`{source.prompt}` is {short(value)}, which is neither text nor a list of chat messages")
        return value, False
    messages = [read_message(source, message, place) for place, message in enumerate(value)]
    ended = bool(messages) and messages[-1]["role"] == "assistant"
    if ended:
        messages.pop()
    if messages and all(message["role"] == "system" for message in messages):
        raise ValueError(f"`{source.prompt}` asks nothing: before the assistant's answer it has no message of a user")
    return messages, ended


def read_message(source: Source, message: Any, place: int) -> Message:
    """A message of a conversation, by the names that the source gives.

    Raises:
        ValueError: it is none.
    """
    keys = {"role": "role", "content": "content"} | source.message_keys
    where = f"`{source.prompt}` has {short(message)} in it"
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}, which is no message: {{role, content}}")
    if keys["role"] not in message and "from" in message and "value" in message:
        raise ValueError(
            f"{where}, which calls role and content otherwise; set `message_keys: {{role: from, content: value}}`, and "
            "`roles: {human: user, gpt: assistant}` where its roles are called so"
        )
    role = message.get(keys["role"])
    if not isinstance(role, str) or keys["content"] not in message:
        raise ValueError(
            f"{where}, which is no message: {{{keys['role']}, {keys['content']}}}; `message_keys` says what they are "
            "called"
        )
    role, content = source.roles.get(role, role), message[keys["content"]]
    more = {
        key: value
        for key, value in message.items()
        if key not in keys.values() and key not in keys and value is not None
    }
    if isinstance(content, list):
        _refuse_other_parts(source, content, place)
    elif content is None and not any(more.values()):
        raise ValueError(f"{where}, whose content is null and which calls no tool")
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"{where}, whose content is {type(content).__name__}, and must be text or a list of parts")
    elif role == "user" and not (content or "").strip():
        raise ValueError(f"{where}, whose content is empty")
    return {"role": role, "content": content, **more}


def _refuse_other_parts(source: Source, parts: list[Any], place: int) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"`{source.prompt}`, message {place}, has the part {short(part)}, and models here read parts of type "
                "text alone"
            )


def content_of(asked: str | Sequence[Message]) -> str:
    """The text of a question, a line a message."""
    return asked if isinstance(asked, str) else "\n".join(plain_content(message) for message in asked)


def plain_content(message: Message) -> str:
    """A message's content as text: the parts of a list as lines, nothing for null."""
    content = message["content"]
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def _with_text(asked: str | list[Message], text: str, leaf: str) -> str | list[Message]:
    """The question with text at its end: of the last message where it is a chat."""
    if isinstance(asked, str):
        return asked + text
    if not asked or asked[-1]["role"] != "user":
        raise ValueError(
            f"ends with a message of the {asked[-1]['role'] if asked else 'nobody'}, and `{leaf}` goes on a user's"
        )
    return [*asked[:-1], {**asked[-1], "content": plain_content(asked[-1]) + text}]  # not per token


def with_suffix(source: Source, problem: Problem) -> str | list[Message]:
    """The question as it is put: with the recipe's suffix.

    Raises:
        ValueError: the messages don't end with a user's.
    """
    return _with_text(problem.asked, source.suffix, "suffix") if source.suffix else problem.asked


def _system(leaf: str, row: Mapping[str, Any]) -> str | None:
    texts: list[str] = []
    for text, path in template_parts(leaf):
        value = "" if path is None else cell(row, path)
        texts.append(text + ("" if value is None else text_of(value, path or "system", lines=True)))
    return "".join(texts) if "".join(texts).strip() else None


def _tools(column: str, value: Any) -> list[Any] | None:
    tools = _parsed(value) if isinstance(value, str) and value.strip() else value
    if tools is None or tools == "":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"`{column}` is {short(value)}, which is no list of tools")
    return tools or None


# ---- options and gold answers


def _options(source: Source, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The texts of the options, and their own labels, as many or none."""
    column = source.options
    assert column is not None
    value = cell(row, column)
    value = _parsed(value) if isinstance(value, str) else value
    labels: list[str] = []
    if isinstance(value, Mapping):
        labels, value = [str(key) for key in value], list(value.values())
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"`{column}` is {short(value)}, which is no list of two options or more")
    if source.option_labels is not None:
        given = cell(row, source.option_labels)
        if not isinstance(given, list) or len(given) != len(value):
            raise ValueError(f"`{source.option_labels}` is {short(given)}, and `{column}` has {len(value)} options")
        labels = [text_of(label, source.option_labels) for label in given]
    most = CHOICES if source.verifier == "choice" else len(LETTERS)
    if len(value) > most:
        raise ValueError(f"`{column}` has {len(value)} options, and at most {most} can be told apart by letter")
    return [text_of(option, column) for option in value], labels


def _lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(LETTERS[: len(options)], options, strict=True))


def _option_line(source: Source, letter: str, option: str) -> str:
    return fill(source.option_line, {"letter": letter, "option": option})


def _letter(source: Source, gold: str, options: Sequence[str], labels: Sequence[str]) -> str:
    """The letter of the right option."""
    how, letters = source.answer_names, LETTERS[: len(options)]
    by_name = {
        "letter": list(letters),
        "index": [str(place) for place in range(len(options))],
        "index_from_1": [str(place + 1) for place in range(len(options))],
        "label": list(labels),
        "option": list(options),
    }[how]
    if how == "label" and not labels:
        raise ValueError(f"`{source.options}` has no labels; name their column as `option_labels`")
    wanted = gold if how == "option" else gold.strip()
    places = [place for place, name in enumerate(by_name) if name == wanted]
    if len(places) != 1:
        count = f"{len(places)} of its options" if places else "no option"
        raise ValueError(
            f"`{source.answer}` is {short(gold)}, which as `answer_names: {how}` names {count}; there are "
            f"{short(list(by_name))}"
        )
    return letters[places[0]]


def _golds(source: Source, row: Mapping[str, Any], answered: bool) -> tuple[str, ...]:
    column = source.answer
    assert column is not None
    if is_template(column):
        return (_label(source, fill(column, row)),)
    if column.startswith(f"{source.prompt}.") and not answered:
        raise ValueError(
            f"`{source.prompt}` does not end with a message of the assistant, which `{column}` is to be of"
        )
    value = cell(row, column)
    lines = source.verifier in RUNS_PROGRAMS
    if isinstance(value, list) and not (lines and all(isinstance(item, str) for item in value)):
        if source.several_golds == "refuse":
            raise ValueError(
                f"`{column}` is a list, {short(value)}; set `several_golds: any` where each of it is right, or name "
                f"one of it, for example `{column}.0`"
            )
        if not value:
            raise ValueError(f"`{column}` is an empty list")
        return tuple(dict.fromkeys(_label(source, item) for item in value))
    return (_label(source, value, lines=lines),)


def _tests(source: Source, row: Mapping[str, Any]) -> str:
    """The unit tests of a row, or its cases."""
    leaf = source.tests
    assert leaf is not None
    if source.verifier != "input_output":
        return _written(row, leaf, "tests", lines=True)
    try:
        function = None if source.function is None else text_of(cell(row, source.function), source.function)
    except ValueError:
        function = None  # rows of whole programs have none
    try:
        return cases_text(fill(leaf, row) if is_template(leaf) else cell(row, leaf), function)
    except ValueError as error:
        raise ValueError(f"`{leaf}`, {short(row.get(leaf))}, {error}") from error


def _label(source: Source, value: Any, *, lines: bool = False) -> str:
    where = source.answer or "answer"
    if not source.labels:
        return text_of(value, where, lines=lines)
    key = _key_of(value)
    if key not in source.labels:
        raise ValueError(f"`{where}` is {short(value)}, and `labels` has {', '.join(map(repr, source.labels))}")
    return source.labels[key]


def shows_letters(problem: Problem, suffix: str) -> bool:
    """Whether a question of several choices shows at least its first two and the right one, each by its letter."""
    text = f"{problem.system or ''}\n{content_of(problem.asked)}\n{suffix}".upper()
    words = set("".join(character if character.isalnum() else " " for character in text).split())
    return {"A", "B", chosen_letter(problem.answer) or "A"} <= words


def named_columns(source: Source) -> dict[str, list[str]]:
    """The paths that each leaf names."""
    leaves = ("prompt", "options", "option_labels", "system", "tools", "answer", "tests", "continues", "domain")
    named = {leaf: columns_of(getattr(source, leaf)) for leaf in leaves if getattr(source, leaf) is not None}
    if not is_template(source.system or ""):
        named.pop("system", None)  # text
    return named | {"filter": list(source.filter)}

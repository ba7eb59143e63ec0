"""What a row of a dataset means: the settings of a task whose prompts come from a `datasets` source.

A leaf that names a column takes a path: `answer`, or `reward_model.ground_truth`, `choices.text`, `messages.-1.content`
where cells are nested (numbers count from 0, or from the end; text that holds JSON is looked into). `prompt`, `answer`,
`tests` and `system` also take a template, text with columns in braces: `"{text}\\nTests:\\n{test_list}"`. A brace that
is meant is written twice, `{{` and `}}`; an empty pair, as in `\\boxed{}`, stands for itself.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from mopd.distill.recipe.base import (
    Count,
    CountOrNone,
    Fraction,
    PluginReference,
    Seconds,
    ShippedOrPlugin,
    Strict,
    refusal,
)
from mopd.distill.recipe.plugins import is_plugin

RUNS_PROGRAMS = ("python_tests", "input_output")
"""Verifiers that run what was written; what is right stands in `tests`."""
SandboxName: TypeAlias = Literal["auto", "whitelist", "bubblewrap"]
"""Where programs are run, and how much of Python they may use (docs/sandbox.md)."""
VerifierName: TypeAlias = Annotated[str, ShippedOrPlugin("exact", "number", "choice", "math", *RUNS_PROGRAMS)]
"""A row of VERIFIERS (rollouts/verifiers.py)."""

_PART = re.compile(r"\{\{|\}\}|\{\}|\{([^{}]+)\}|[{}]")


def is_template(text: str) -> bool:
    """Whether a leaf is text with columns in braces, and not the path of one column."""
    return "{" in text


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """A template as (text, path of the column after it); the last path is None.

    Raises:
        ValueError: a brace stands alone; the message is the end of a sentence that begins with the leaf.
    """
    parts: list[tuple[str, str | None]] = []
    text, end = "", 0
    for match in _PART.finditer(template):
        text += template[end : match.start()]
        end = match.end()
        if match[1] is not None:
            parts.append((text, match[1].strip()))
            text = ""
        elif match[0] in ("{", "}"):
            before = template[max(0, match.start() - 20) : match.start()]
            raise ValueError(
                f"has a lone {match[0]!r} after {before!r}; write a column as {{column}}, and a brace that is meant as "
                "{{ or }}"
            )
        else:
            text += {"{{": "{", "}}": "}"}.get(match[0], match[0])
    return [*parts, (text + template[end:], None)]


def columns_of(leaf: str | None) -> list[str]:
    """The paths of the columns that a leaf names, as a path or in a template."""
    if leaf is None:
        return []
    return [path for _, path in template_parts(leaf) if path is not None] if is_template(leaf) else [leaf]


GYM = "reasoning_gym:"
"""`reasoning_gym:NAME` is short for `{reasoning_gym: NAME}`."""


class GymSource(Strict):
    """Problems that a generator of reasoning-gym draws, with its own verifier; the package is an extra.

    Source: https://github.com/open-thought/reasoning-gym, arXiv 2505.24760.
    """

    reasoning_gym: str = Field(description="name of a generator, for example chain_sum")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the generator, for example {max_terms: 3}; none: its own defaults",
    )
    easy: dict[str, Any] = Field(
        default_factory=dict, description="settings of its easy form, beside `config`, which `easy_share` draws from"
    )
    suffix: str = Field(default="", description="text after the question, as it is")
    system: str | None = Field(default=None, description="system message; none: the chat template's own")
    template: Literal["auto", "chat", "raw"] = Field(
        default="auto",
        description="chat: turns in the student's chat template; raw: the text alone; auto: see `Source`",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, for example {enable_thinking: false}"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``reasoning_gym:NAME`` as a mapping."""
        return {"reasoning_gym": value.removeprefix(GYM)} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _seeds_are_keyed(self) -> Self:
        for leaf in ("config", "easy"):
            for key in {"seed", "size"} & getattr(self, leaf).keys():
                raise refusal(f"has `{leaf}.{key}`; problems are drawn by the recipe's `seed`, as many as are needed")
        return self


PACKAGES_ELSEWHERE = ("verifiers", "bfcl", "conversations")
"""Packages whose environments are played by name, and conversations of a dataset; their settings are `args`."""
KINDS_ELSEWHERE = (*PACKAGES_ELSEWHERE, "program")
SCRIPTED = ("bfcl:", "conversations:")
"""Of them, those whose episodes have scripts, which the supervised method learns from."""
ELSEWHERE = tuple(f"{kind}:" for kind in KINDS_ELSEWHERE)
"""`verifiers:NAME` is short for `{verifiers: NAME}`, `program:COMMAND` for `{program: COMMAND}`."""


class EnvironmentSource(Strict):
    """Episodes of an environment, in which the student writes several turns; docs/agents.md."""

    environment: Annotated[str, ShippedOrPlugin("calculator", "debug", prefixes=ELSEWHERE)] = Field(
        description="which: calculator, debug, ./file.py:NAME of your own, {verifiers: NAME} or {bfcl: NAME} of those "
        "packages, {conversations: PATH} of a dataset, or {program: COMMAND} that asks an endpoint"
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="of {verifiers: NAME} and {bfcl: NAME}: settings of the package's environment; of {conversations: "
        "PATH}: of the dataset",
    )
    turns: int = Field(default=8, ge=1, le=64, description="messages of the student in an episode at most")
    max_tokens_turn: Count = Field(default=64, description="tokens of a message at most, the closing one included")
    max_tokens: Count = Field(default=1024, description="tokens of an episode after its prompt at most")
    seconds: Seconds = Field(default=30.0, description="that the environment may take for an answer")

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, value: Any) -> Any:
        """``{verifiers: NAME, args: {...}}`` as the environment's name and its arguments."""
        named = value.get("environment") if isinstance(value, dict) else None
        if not isinstance(named, dict):
            return value
        kinds = [kind for kind in KINDS_ELSEWHERE if kind in named]
        if len(kinds) != 1 or named.keys() - {*kinds, "args"}:
            raise refusal(
                "has an `environment` that is none of {verifiers: NAME, args: {...}}, {bfcl: NAME, args: {...}}, "
                "{conversations: PATH, args: {...}} and {program: COMMAND}"
            )
        if "args" in named and "args" in value:
            raise refusal("has `args` twice; give them once")
        name = named[kinds[0]]
        given = {"args": named["args"]} if "args" in named else {}
        return {**value, **given, "environment": f"{kinds[0]}:{name}" if isinstance(name, str) else name}

    @model_validator(mode="after")
    def _args_are_of_packages(self) -> Self:
        if self.args and self.environment.partition(":")[0] not in PACKAGES_ELSEWHERE:
            raise refusal(f"has `args`, and the environment {self.environment} takes none; leave them out")
        return self


class Source(Strict):
    """Prompts from a `datasets` source; see :mod:`distill.recipe.source` on paths and templates."""

    path: str = Field(
        description="a Hub id, or a path (begins with ./ or /) of a .jsonl, .json, .csv or .parquet file, or a folder"
    )
    name: str | None = Field(default=None, description="configuration of a Hub dataset")
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a Hub dataset; none: its main branch. Noted as the commit"
    )
    split: str = Field(default="train", description="split that training prompts come from")
    validation_split: str | None = Field(default=None, description="split for validation; none: held out by hash")
    test_split: str | None = Field(default=None, description="split for test; none: held out by hash")
    streaming: bool = Field(
        default=False, description="read the first `limit` rows of each split and leave the rest where it is"
    )

    domain: str | None = Field(default=None, description="column of the domain; rows of other domains are left out")
    filter: dict[str, Any] = Field(
        default_factory=dict, description="by column, the value, or a list of the values, of the rows that are taken"
    )
    limit: Count | None = Field(default=None, description="rows of the training split at most, the first; none: all")
    row: PluginReference | None = Field(
        default=None, description="./file.py:f of your own: columns of a row -> columns, or None to leave it out"
    )
    drop_refused: Fraction | None = Field(
        default=None, description="part of the rows that may be left out as unusable, each named; none: no row may"
    )
    several_golds: Literal["refuse", "any"] = Field(
        default="refuse",
        description="a prompt with different gold answers, in a list or in several rows: refused, or any is right",
    )

    prompt: str = Field(
        default="prompt", description="column of the question, text or chat messages; or a template over columns"
    )
    options: str | None = Field(
        default=None,
        description="column of the options, a list of texts or a mapping; they follow the question as lettered lines",
    )
    option_labels: str | None = Field(
        default=None, description="column of the options' own labels, for `answer_names: label`"
    )
    option_line: str = Field(
        default="{letter}. {option}", description="a line of the options: text with {letter} and {option}"
    )
    suffix: str = Field(default="", description="text after the question and its options, as it is (no template)")
    system: str | None = Field(
        default=None,
        description="system message, text or a template; it takes the place of one that the messages have; a template "
        "that comes out empty gives none",
    )
    template: Literal["auto", "chat", "raw"] = Field(
        default="auto",
        description="chat: turns in the student's chat template; raw: the text alone, after the tokenizer's own BOS; "
        "auto: chat where its tokenizer has a chat template",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, for example {enable_thinking: false}"
    )
    tools: str | None = Field(default=None, description="column of the tools that the chat template is given")
    message_keys: dict[Literal["role", "content"], str] = Field(
        default_factory=dict,
        description="what messages call role and content, for example {role: from, content: value}",
    )
    roles: dict[str, str] = Field(
        default_factory=dict,
        description="roles of the messages by what they are called here, for example {human: user}",
    )
    shots: CountOrNone = Field(
        default=0, description="rows that are shown with their answers before each question; trained on by none"
    )
    shots_split: str | None = Field(
        default=None, description="split whose first rows are the shots; none: that of training, which leaves them out"
    )
    shot_rows: list[dict[str, Any]] = Field(
        default_factory=list, description="shots that are written here, each with the columns of a row"
    )

    answer: str | None = Field(
        default="answer",
        description="column of the gold answer (of the unit tests, see `tests`), or a template; null: a verifier of "
        "your own needs none",
    )
    answer_names: Literal["letter", "index", "index_from_1", "label", "option"] = Field(
        default="letter",
        description="with `options`, how `answer` names the right one: by letter, by place from 0 or from 1, by its "
        "own label (`option_labels`, keys of a mapping), by its text",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="gold answers by what the column holds, for example {0: negative, 1: positive}",
    )
    tests: str | None = Field(
        default=None,
        description="column of the unit tests of verifier python_tests, or a template such as "
        '"{test}\\ncheck({entry_point})"; none: `answer` holds them. Of verifier input_output, column of the cases',
    )
    function: str | None = Field(
        default=None,
        description="with input_output, column of the name of the function that is asked for; none: the cases say so",
    )
    continues: str | None = Field(
        default=None,
        description="with python_tests, column of the code that an answer goes on from, where it is no whole program",
    )
    sandbox: SandboxName = Field(
        default="auto",
        description="where verifiers that run programs do: whitelist: a part of Python; bubblewrap: any Python; auto: "
        "bubblewrap where this machine can, else whitelist",
    )
    answer_after: str | None = Field(
        default="auto",
        min_length=1,
        description="text after whose last occurrence the answer begins, for example </think>; a completion without it "
        "has no answer. auto: after the thoughts, where there are any or the prompt opens one; null: all of it",
    )
    control_tokens: Literal["auto", "refuse", "text", "tokens"] = Field(
        default="auto",
        description="control tokens that a row's text has, such as <|im_end|>: refuse: the row; text: written as the "
        "letters they are; tokens: taken for what they stand for; auto: refuse in the turns of a chat, tokens in raw "
        "text",
    )
    verifier: VerifierName = Field(
        default="exact",
        description="how an answer is checked: a shipped verifier, or ./file.py:f of your own, (text, row) -> 0..1",
    )

    @field_validator("prompt", "system", "answer", "tests")
    @classmethod
    def _braces_in_pairs(cls, value: str | None) -> str | None:
        try:
            columns_of(value)
        except ValueError as error:
            raise refusal(str(error)) from error
        return value

    @field_validator("filter")
    @classmethod
    def _plain_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for column, wanted in value.items():
            for each in wanted if isinstance(wanted, list) else [wanted]:
                if not isinstance(each, str | int | float):
                    raise refusal(
                        f"has {each!r:.60} for `{column}`; it needs a text, a number, true or false, or a list of them"
                    )
        return value

    @field_validator("option_line")
    @classmethod
    def _a_line_of_both(cls, value: str) -> str:
        if sorted(columns_of(value)) != ["letter", "option"]:
            raise refusal(f"is {value!r}; it needs {{letter}} and {{option}}, once each, and no other braces")
        return value

    @model_validator(mode="after")
    def _what_goes_with_what(self) -> Self:
        if self.verifier == "input_output" and self.tests is None:
            raise refusal("has verifier input_output and no `tests`; name the column of the inputs and outputs")
        if self.function is not None and self.verifier != "input_output":
            raise refusal(f"has `function`, which input_output reads, and the verifier {self.verifier}; leave it out")
        runs_tests = self.verifier in RUNS_PROGRAMS and self.tests is not None
        if self.answer is None and not is_plugin(self.verifier) and not runs_tests:
            raise refusal(f"has no `answer`, which verifier {self.verifier} compares with; name its column")
        for leaf, what in (("option_labels", "options"), ("shots_split", "shots")):
            if getattr(self, leaf) is not None and not getattr(self, what):
                raise refusal(f"has `{leaf}` and no `{what}`, without which it means nothing; give both or neither")
        if self.answer_names != "letter" and self.options is None:
            raise refusal(f"has `answer_names: {self.answer_names}` and no `options`; name the column of the options")
        if self.shots and self.shot_rows:
            raise refusal("has both `shots` and `shot_rows`; give one of them")
        if self.streaming and self.limit is None:
            raise refusal("has `streaming` and no `limit`; say how many rows are read")
        if self.sandbox != "auto" and self.verifier not in RUNS_PROGRAMS:
            raise refusal(f"has `sandbox`, and verifier {self.verifier} runs no programs in it; leave it out")
        if self.continues is not None and self.verifier != "python_tests":
            raise refusal(f"has `continues`, which python_tests reads, and the verifier {self.verifier}; leave it out")
        if self.template == "raw" and (self.template_arguments or self.tools is not None):
            leaf = "template_arguments" if self.template_arguments else "tools"
            raise refusal(f"has `{leaf}`, which a chat template is given, and `template: raw`; give one of them")
        return self

    @model_validator(mode="after")
    def _no_gold_in_the_prompt(self) -> Self:
        columns = {"prompt": self.prompt, "answer": self.answer, "tests": self.tests}
        named = [key for key, column in columns.items() if column is not None and not is_template(column)]
        for first, second in itertools.combinations(named, 2):
            if columns[first] == columns[second]:
                raise refusal(
                    f"has `{first}` and `{second}` in one column, {columns[first]!r}; name the column of each"
                )
        if self.answer is None or (self.verifier == "python_tests" and self.tests is None):
            return self  # unit tests may be shown
        for leaf in ("prompt", "system"):
            template = getattr(self, leaf)
            if template is not None and is_template(template) and self.answer in columns_of(template):
                raise refusal(
                    f"has {{{self.answer}}} in `{leaf}`, the column of the gold answer, which would be shown; write "
                    f"{{{{{self.answer}}}}} where braces are meant"
                )
        return self

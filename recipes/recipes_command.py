"""What `mopd recipes` lists, and what `mopd init` writes: a recipe from a model and the user's own questions."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.errors import UserError
from mopd.distill.recipe.files import is_study, read_tree, shipped_recipes, write_yaml
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.model_names import is_path
from mopd.recipes import SHIPPED
from mopd.recipes.tables import Fitted

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input")
ANSWERS = ("answer", "solution", "response", "output", "completion", "target")
VERIFIERS = ("exact", "number", "choice", "math")
LOOKED_AT = 200
"""Rows whose answers say which verifier fits and how long an answer is."""
MOST_HELD_OUT = {"validation": 100, "test": 500}
UNKNOWN_TOKENS = 256
"""Of an answer that is on the Hub."""
LONGEST_EXACT = 80
"""Letters of an answer, beyond which nobody writes the same text twice."""


def show_recipes(console: Console) -> list[dict[str, Any]]:
    """Print the shipped recipes with what they are; returns them as plain values."""
    rows: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False)
    for heading in ("recipe", "what it is"):
        table.add_column(heading, no_wrap=heading == "recipe")
    for name in shipped_recipes(SHIPPED):
        tree, _ = read_tree(name, shipped=SHIPPED)
        study, description = is_study(tree), str(tree.get("description") or "")
        domains = list(tree.get("domains") or {})
        rows.append({"recipe": name, "description": description, "study": study, "domains": domains})
        table.add_row(
            Text(name, style="bold"), Text(f"{'a study: ' if study else ''}{description or ', '.join(domains)}")
        )
    console.print(Fitted(table))
    console.print("mopd recipes NAME prints one; mopd check NAME plans it; mopd run NAME runs it", highlight=False)
    return rows


def recipe_text(name: str) -> str:
    """A shipped recipe as it is written.

    Raises:
        UserError: none has this name; those there are, are named.
    """
    known = shipped_recipes(SHIPPED)
    if name not in known:
        raise UserError(f"no shipped recipe is called {name!r}; {guess(name, known)}")
    return (SHIPPED / f"{name}.yaml").read_text()


@dataclass(frozen=True, slots=True)
class NewDomain:
    """A domain of a recipe that is about to be written.

    Attributes:
        path: of its rows, or a Hub id.
        teacher: a checkpoint that knows it; None: a stage makes one from the answers.
        prompt, answer: columns; None: those that are called as most are.
        verifier: which says what is right; None: the one that fits the answers.
    """

    name: str
    path: str
    teacher: str | None
    prompt: str | None = None
    answer: str | None = None
    verifier: str | None = None


def new_domains(
    data: Sequence[str], teachers: Sequence[str], *, prompt: str | None, answer: str | None, verifier: str | None
) -> list[NewDomain]:
    """The domains that the command line names, ``NAME=FILE`` or ``FILE`` each, with their teachers.

    Raises:
        UserError: two domains of one name, or a teacher of none.
    """
    named = dict[str, str]()
    for text in data:
        name, path = _named(text)
        if name in named:
            raise UserError(f"--data: two domains are called {name!r}; write NAME=FILE")
        named[name] = path
    taught = dict[str, str]()
    for text in teachers:
        name, equals, model = text.partition("=")
        if not equals and len(named) == 1:
            name, model = next(iter(named)), text
        if name not in named:
            raise UserError(f"--teacher {text}: no domain is called {name!r}; {guess(name, named)}; write NAME=MODEL")
        taught[name] = model
    return [
        NewDomain(name, path, _as_path(taught[name]) if name in taught else None, prompt, answer, verifier)
        for name, path in named.items()
    ]


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or os.path.exists(text):
        name, path = re.sub(r"[^a-z0-9_]+", "_", Path(text).stem.lower()).strip("_") or "mine", text
    return name, _as_path(path)


def _as_path(text: str) -> str:
    """What is there becomes a path to a recipe's eyes; other names are the Hub's."""
    return f"./{text}" if os.path.exists(text) and not is_path(text) else text


def asked_domains(ask: Callable[[str, str], str]) -> tuple[str, list[NewDomain]]:
    """Model and domains from a person's answers.

    Args:
        ask: puts a question, with the answer that an empty line stands for.
    """
    model = _as_path(ask("The model that learns: a checkpoint's folder, or a Hub id", ""))
    domains: list[NewDomain] = []
    while path := ask("Rows of a domain (.jsonl, .csv, .parquet, a Hub id)" + (", empty to end" * bool(domains)), ""):
        name, path = _named(path)
        name = ask("  its name", name)
        columns = list(_rows(path)[0]) if os.path.exists(path) else []
        if columns:
            prompt = ask(f"  column of the question, of {', '.join(columns)}", _among(PROMPTS, columns) or "")
            answer = ask(f"  column of the answer, of {', '.join(columns)}", _among(ANSWERS, columns) or "")
        else:
            prompt, answer = ask("  column of the question", "prompt"), ask("  column of the answer", "answer")
        fits = ask(f"  what says that an answer is right: {', '.join(VERIFIERS)}, or empty for what fits", "")
        teacher = ask("  a teacher of it, or empty: one is trained on the answers", "")
        domains.append(NewDomain(name, path, _as_path(teacher) or None, prompt, answer, fits or None))
    return model, domains


def write_recipe(path: Path, model: str, domains: Sequence[NewDomain], *, force: bool) -> Path:
    """Write a recipe that distils ``domains`` into ``model``; it is whole, and small enough to try.

    Raises:
        UserError: the file is there, or the rows can't be used as they are said to mean.
    """
    if path.exists() and not force:
        raise UserError(f"{path} is there; give another name, or --force to write it anew")
    if not model or not domains:
        raise UserError(
            "a recipe needs a model and rows: give --model MODEL and --data NAME=FILE, or neither, to be asked"
        )
    tree = recipe_tree(path.stem, _as_path(model), domains)
    blocks = [f"# {comment}\n{write_yaml(part)}" for comment, part in tree]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(blocks))
    return path


def recipe_tree(name: str, model: str, domains: Sequence[NewDomain]) -> list[tuple[str, dict[str, Any]]]:
    """The recipe in parts, each with what is said above it.

    Raises:
        UserError: the rows can't be used.
    """
    tasks = {domain.name: _task(domain) for domain in domains}
    counts = _held_out(tasks)
    tokens = max(_answer_tokens(model, domain, tasks[domain.name]) for domain in domains)
    made = [domain for domain in domains if domain.teacher is None]
    lora, own = {"rank": 16, "alpha": 32}, {"warmup_steps": 4}
    description = f"{', '.join(tasks)} into {Path(model).name}"
    of_domains = {
        domain.name: {"task": tasks[domain.name], "teacher": domain.name, "prompts": 16} for domain in domains
    }
    teachers = {
        domain.name: {"model": model, "adapter": f"stage:{domain.name}"}
        if domain.teacher is None
        else {"model": domain.teacher}
        for domain in domains
    }
    stages = {
        domain.name: {"from": model, "lora": lora, "domains": [domain.name], "prompts": 16, "steps": 60}
        | {"optimizer": {"lr": 2.0e-3, **own}}
        for domain in made
    }
    student = {"model": model, "lora": lora, "optimizer": {"lr": 1.0e-3, **own}, "updates_per_step": 2}
    evaluate = {"validation_prompts": counts["validation"], "test_prompts": counts["test"]}
    return [
        ("`mopd schema` has every key and its default; `mopd check` plans this recipe, `mopd run` runs it.",
         {"name": name, "description": description}),
        ("An adapter is trained; `lora` left out trains the whole model.", {"student": student}),
        ("What is asked, and what says that an answer is right (docs/datasets.md).", {"domains": of_domains}),
        ("Who grades: adapters over one base share its process.", {"teachers": teachers}),
        ("An answer longer than this many tokens is cut.", {"rollout": {"max_new_tokens": tokens}}),
        ("Questions of each domain that are held out; more of them make intervals narrower.", {"evaluate": evaluate}),
        ("Enough to see whether it moves; a real run takes hundreds.",
         {"run": {"steps": 60, "evaluate_every": 20, "save_every": 20}}),
        *([("How the teachers are made: supervised, on the answers.", {"stages": stages})] if made else []),
    ]  # fmt: skip


def _task(domain: NewDomain) -> dict[str, Any]:
    """The task of a domain as a recipe says it."""
    if not os.path.exists(domain.path):
        columns = {"prompt": domain.prompt or "prompt", "answer": domain.answer or "answer"}
        return {"path": domain.path, **columns, "verifier": domain.verifier or "exact"}
    rows = _rows(domain.path)
    columns = list(rows[0])
    prompt, answer = domain.prompt or _among(PROMPTS, columns), domain.answer or _among(ANSWERS, columns)
    if prompt is None or answer is None:
        option, known = ("prompt", PROMPTS) if prompt is None else ("answer", ANSWERS)
        raise UserError(
            f"{domain.path} has the columns {', '.join(columns)}, and none is called {' or '.join(known)}; "
            f"name the column with --{option}"
        )
    verifier = domain.verifier or _fitting(_answers(rows, answer), domain)
    return {"path": domain.path, "prompt": prompt, "answer": answer, "verifier": verifier}


def _answers(rows: Sequence[Mapping[str, Any]], answer: str) -> list[str]:
    """The answers of rows as text; ``answer`` is a column's path, or a template over columns.

    Raises:
        UserError: a row has no such column, or nothing that is text.
    """
    from mopd.distill.recipe.source import template_parts
    from mopd.rollouts.tasks.row_meaning import cell, text_of

    parts = template_parts(answer) if "{" in answer else [("", answer)]
    texts: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            written = [text + ("" if p is None else text_of(cell(row, p), p, lines=True)) for text, p in parts]
        except ValueError as error:
            raise UserError(f"row {number}: --answer {answer}: {error}; name the column with --answer") from error
        texts.append("".join(written))
    return texts


def _fitting(answers: Sequence[str], domain: NewDomain) -> str:
    """The verifier that fits the answers.

    Raises:
        UserError: they are long texts, which none compares.
    """
    if answers and all(re.fullmatch(r"\s*[-+]?\$?\d[\d,]*(\.\d+)?\s*%?\s*", text) for text in answers):
        return "number"
    if answers and sum("\\boxed" in text for text in answers) > len(answers) / 2:
        return "math"
    if max(map(len, answers), default=0) > LONGEST_EXACT:
        raise UserError(
            f"{domain.path}: answers have up to {max(map(len, answers))} letters, and no verifier is sure to fit; "
            f"give --verifier {'|'.join(VERIFIERS)}, or ./file.py:f of your own (docs/verifiers.md)"
        )
    return "exact"


def _among(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _rows(path: str) -> Sequence[Mapping[str, Any]]:
    """The first rows of a file or a folder, at least one.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    from mopd.distill.recipe import Source
    from mopd.rollouts.tasks.tables import load, rows_of

    rows = list(itertools.islice(rows_of(load(Source(path=path), "train")), LOOKED_AT))
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _held_out(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many questions every domain has for validation and test, of the files that are here.

    Raises:
        UserError: a task's rows can't be used; see :class:`rollouts.tasks.dataset.DatasetTask`.
    """
    from mopd.distill.recipe import Source
    from mopd.rollouts.tasks.dataset import DatasetTask

    sizes = [
        DatasetTask(Source.model_validate(task), None, domain=name).sizes
        for name, task in tasks.items()
        if os.path.exists(task["path"])
    ]
    return {split: min([most, *(size[split] for size in sizes)]) for split, most in MOST_HELD_OUT.items()}


def _answer_tokens(model: str, domain: NewDomain, task: Mapping[str, Any]) -> int:
    """Room for the answers of a domain: half as much again as the longest of the first, at least 32 tokens.

    Counted by the model's tokenizer where that lies here, else as a token for two letters.
    """
    if not os.path.exists(domain.path):
        return UNKNOWN_TOKENS
    answers = _answers(_rows(domain.path), task["answer"])
    tokenizer = Path(model) / "tokenizer.json"
    if tokenizer.is_file():
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(tokenizer))
        lengths = [len(read.encode(text).ids) for text in answers]
    else:
        lengths = [math.ceil(len(text) / 2) for text in answers]
    return 32 * math.ceil(max(32, 1.5 * max(lengths)) / 32)

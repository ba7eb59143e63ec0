"""What `mopd write` does: a model behind a chat API writes conversations of a domain, and those found right are kept.

Every conversation is noted in ``OUT.asked`` as it ends, so that a command that was stopped goes on where it was and
nothing is paid for twice; ``OUT`` is made of those notes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from mopd.distill.endpoint import Endpoint, EndpointLost, EndpointRefused
from mopd.distill.errors import RunError, UserError
from mopd.distill.recipe import DomainRecipe, EnvironmentSource, Recipe
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.study import load
from mopd.distill.storage import write_atomic
from mopd.distill.tracking.jsonl import append_jsonl, read_jsonl, truncate_jsonl
from mopd.recipes import SHIPPED
from mopd.rollouts.chat_teacher import Asked, ChatTeacher, Ended, WrittenConversation
from mopd.rollouts.environments import domain_task

PROBE_SECONDS = 120.0
"""For a first token; a server may load its model only then."""
Keep = Literal["right", "all"]
WORDS: dict[Ended, str] = {
    "answered": "answered",
    "cut": "cut at --max-tokens",
    "empty": "empty message",
    "turns": "no end in all its turns",
    "failed": "the environment broke",
    "refused": "the server refused",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written.

    Attributes:
        recipe_name: whose domain, seed and fault policy they are.
        endpoint: up to and including ``/v1``.
        key_env: the environment variable that holds the key; None: none is sent.
        prompts, samples: how many training prompts, and conversations of each.
        temperature: None: the server's own.
        max_tokens: of a message; None: the domain's limit.
        keep: conversations that the verifier found right, or all that ended with an answer.
        together: requests at a time.
    """

    recipe_name: str
    domain: str
    endpoint: str
    model: str
    key_env: str | None
    prompts: int
    samples: int
    temperature: float | None
    max_tokens: int | None
    keep: str
    together: int
    out: Path


def write(order: Order, console: Console) -> dict[str, Any]:
    """Write what is not noted yet, keep what is to be kept, and print what became of all; returns it as plain values.

    Raises:
        UserError: there is no such domain, nobody answers, or ``out`` was begun with other settings.
        RunError: the server was away for too long; the same command goes on.
    """
    if order.keep not in get_args(Keep):
        raise UserError(f"--keep is {order.keep!r}; it may be {' or '.join(get_args(Keep))}")
    if order.samples > 1 and order.temperature == 0:
        raise UserError("--samples with --temperature 0 would be the same each time; raise that, or leave it out")
    recipe = load(order.recipe_name, (), shipped=SHIPPED)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{order.recipe_name} is a study; name a recipe, such as the recipe.yaml of one of its runs")
    if order.domain not in recipe.domains:
        raise UserError(f"--domain: no domain is called {order.domain!r}; {guess(order.domain, recipe.domains)}")
    domain = recipe.domains[order.domain]
    task = domain_task(domain.task, domain=order.domain, tokenizer=None)
    per_turn = domain.task.max_tokens_turn if isinstance(domain.task, EnvironmentSource) else None
    limit = order.max_tokens or per_turn or recipe.rollout.max_new_tokens
    settings = {"max_tokens": limit} | ({} if order.temperature is None else {"temperature": order.temperature})
    teacher = ChatTeacher(_reached(order), settings, recipe.faults)
    notes = Path(f"{order.out}.asked")
    written = _noted(notes, _terms(order, domain, recipe.seed, limit))
    asked = [Asked(index, sample) for index in range(order.prompts) for sample in range(order.samples)]
    left = [each for each in asked if each not in written]

    def conversation_of(each: Asked) -> WrittenConversation:
        return teacher.write(task, order.domain, recipe.seed, each)

    with console.status("") as status:
        for conversation in _side_by_side(conversation_of, left, order.together):
            append_jsonl(notes, [asdict(conversation)])
            written[conversation.asked] = conversation
            status.update(f"{len(written)} conversations; {_right(written.values())} right")
    chosen = [written[each] for each in asked]
    wanted = [each for each in chosen if each.ended == "answered" and (each.reward >= 1 or order.keep == "all")]
    kept = list({json.dumps(each.messages): each for each in wanted}.values())
    rows = [{"messages": [*each.messages], "prompt": each.prompt, "reward": each.reward} for each in kept]
    write_atomic(order.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    ends = Counter(each.ended for each in chosen)
    record: dict[str, Any] = {
        "format": 1,
        "out": str(order.out),
        "conversations": len(chosen),
        "prompts": len({each.prompt.rpartition("-")[2] for each in chosen}),
        "kept": len(kept),
        "repeated": len(wanted) - len(kept),
        "right": _right(chosen),
        "ended": {name: ends[name] for name in WORDS},
        "tokens": sum(each.tokens for each in chosen),
        "why": dict(Counter(each.why for each in chosen if each.why).most_common(5)),
    }
    console.print(_table(record, order))
    return record


def _right(conversations: Iterable[WrittenConversation]) -> int:
    return sum(each.reward >= 1 for each in conversations)


def _reached(order: Order) -> Endpoint:
    """The endpoint, which answered; one that lists no models is asked for a token.

    Raises:
        UserError: nobody does, or not under this name.
    """
    endpoint = Endpoint.reach(order.endpoint, order.model, key_env=order.key_env, where="--api-key-env")
    try:
        names = [str(model.get("id")) for model in endpoint.models()]
    except (EndpointLost, EndpointRefused):
        names = []
    if names and order.model not in names:
        raise UserError(f"--model: {order.endpoint} serves {', '.join(names[:20])}, and not {order.model!r}")
    if not names:
        try:
            endpoint.chat([{"role": "user", "content": "1"}], seconds=PROBE_SECONDS, max_tokens=1)
        except (EndpointLost, EndpointRefused) as error:
            raise UserError(f"--endpoint: {error}; start the server, or correct the URL") from error
    return endpoint


def _terms(order: Order, domain: DomainRecipe, seed: int, limit: int) -> dict[str, Any]:
    """What conversations follow from; notes of other ones are not gone on with."""
    return {
        "domain": domain.model_dump(mode="json", include={"task"}),
        "seed": seed,
        "model": order.model,
        "temperature": order.temperature,
        "max_tokens": limit,
    }


def _noted(notes: Path, terms: Mapping[str, Any]) -> dict[Asked, WrittenConversation]:
    """The conversations that were written before; a line that a crash cut off is asked for again.

    Raises:
        UserError: they were written on other terms, or the file is another's.
    """
    if not notes.exists():
        append_jsonl(notes, [terms])
        return {}
    try:
        truncate_jsonl(notes, lambda row: True)
        before, *rows = read_jsonl(notes)
        known = [_conversation(row) for row in rows]
    except (RunError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{notes} is no record of conversations ({error}); name another file with --out") from error
    if changed := [key for key in terms if before.get(key) != terms[key]]:
        was = "; ".join(f"{key} was {before.get(key)!r}" for key in changed)
        raise UserError(f"{notes} was begun on other terms ({was}); give these, or another file with --out")
    return {each.asked: each for each in known}


def _conversation(row: Mapping[str, Any]) -> WrittenConversation:
    asked = Asked(**row["asked"])
    return WrittenConversation(**{**row, "asked": asked, "messages": tuple(row["messages"])})


def _side_by_side(
    make: Callable[[Asked], WrittenConversation], asked: Sequence[Asked], together: int
) -> Iterator[WrittenConversation]:
    """Each as it ends. What any raises comes after the others that were under way.

    Raises:
        RunError: the server was away for too long, or refused the first of all.
    """
    waiting, raised, answered = iter(asked), None, False
    with ThreadPoolExecutor(together, thread_name_prefix="writer") as threads:
        live = {threads.submit(make, each) for each in itertools.islice(waiting, together)}
        while live:
            done, live = wait(live, return_when=FIRST_COMPLETED)
            for future in done:
                if (error := future.exception()) is not None:
                    raised = error
                    continue
                conversation = future.result()
                if conversation.ended == "refused" and not answered:
                    raised = RunError(conversation.why)
                    continue
                answered = True
                yield conversation
            if raised is None:
                live |= {threads.submit(make, each) for each in itertools.islice(waiting, len(done))}
    if isinstance(raised, EndpointLost):
        raise RunError(f"{raised}; what was written is kept, and the same command goes on") from raised
    if raised is not None:
        raise raised


def _table(record: Mapping[str, Any], order: Order) -> Table:
    table = Table("conversations", "", title=f"{order.domain}, written by {order.model}")
    table.add_row("asked for", f"{record['conversations']:,}")
    table.add_row("different prompts", f"{record['prompts']:,}")
    for name, words in WORDS.items():
        if record["ended"][name] or name == "answered":
            table.add_row(words, f"{record['ended'][name]:,}")
    table.add_row("right", f"{record['right']:,}")
    if record["repeated"]:
        table.add_row("of those, word for word as another", f"{record['repeated']:,}")
    table.add_row(f"kept in {order.out}", f"{record['kept']:,}", end_section=True)
    table.add_row("tokens, by the server", f"{record['tokens']:,}")
    for why, times in record["why"].items():
        table.add_row(f"{times:,} times", why)
    return table

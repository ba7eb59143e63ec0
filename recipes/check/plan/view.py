"""The plan of a recipe as tables for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.recipes.check.plan.processes import Card
from mopd.recipes.check.plan.room import LOWER_CARD, Room
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.resolve.run_folder import size
from mopd.recipes.tables import Fitted
from mopd.teachers.retokenized import ChunkCount


def print_plan(plan: Plan, console: Console, there: Room) -> None:
    """Print models, processes, tokens of a step, memory and disk."""
    console.print(Fitted(_models(plan)))
    for words, names in _attention(plan).items():
        console.print(Text(f"attention: {words} ({', '.join(names)})"), soft_wrap=True)
    print_aligned(plan.aligned, console)
    console.print(Fitted(_processes(plan)))
    console.print(Fitted(_steps(plan)))
    if plan.lag:
        steps = "1 step" if plan.lag == 1 else f"{plan.lag} steps"
        meanwhile = "by the ranks, before they learn; only grading goes on while they do"
        how = meanwhile if plan.ranks_write else "and graded, while the ranks learn"
        written = f"lag: a step's rollouts are written with the weights of {steps} before, {how}"
        console.print(Text(written), soft_wrap=True)
    if (card := plan.fullest_card) is not None:
        console.print(Fitted(_card(card, there.card_bytes)))
    console.print(
        f"memory of the host: about {size(plan.memory_bytes)} at the peak, in all processes"
        f"{out_of(there.memory_bytes, 'here')}\n"
        f"disk: about {size(plan.disk_bytes)}{out_of(there.disk_bytes, 'free')}\n"
        f"from teachers to student: about {size(sum(step.payload_bytes for step in plan.steps))} a step\n"
        f"compute: about {plan.flops:.1e} floating-point operations",
        highlight=False,
    )
    if there.memory_bytes is not None and plan.memory_bytes > there.memory_bytes:
        console.print(
            "The estimate is more than this machine has: fewer run.parallel_stages, a smaller "
            "student.engine.microbatch_tokens or more ranks lower it.",
            style="yellow",
        )
    if card is not None and there.card_bytes is not None and card.needed_bytes > there.card_bytes:
        console.print(f"The estimate is more than a card holds: {LOWER_CARD}.", style="yellow")
    print_warnings(plan.warnings, console)


def print_aligned(aligned: Mapping[str, ChunkCount], console: Console, *, where: str = "") -> None:
    """Print how tokens of teachers that score their own align with the student's."""
    for name, count in aligned.items():
        console.print(Text(f"tokens{where}: of gold answers for teacher {name}, {count.sentence}"), soft_wrap=True)


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print what a run will pass over, each once."""
    for warning in dict.fromkeys(warnings):
        console.print(Text(f"warning: {warning}"), style="yellow", soft_wrap=True)


def _models(plan: Plan) -> Table:
    table = _table("models", "model", "made by", "parameters", "active")
    for model in plan.models:
        table.add_row(Text(model.name), Text(model.made), _count(model.parameters), _count(model.active_parameters))
    return table


def _attention(plan: Plan) -> dict[str, list[str]]:
    """Models by how they compute attention."""
    names: dict[str, list[str]] = {}
    for model in plan.models:
        if model.attention:
            names.setdefault(model.attention, []).append(model.name)
    return names


def _processes(plan: Plan) -> Table:
    """Each kind of process with its roles: what it holds, and what at its moments, of which it has one at a time."""
    table = _table("processes, and what each takes by role", "process", "while", "how many", "what for", "memory each")
    for process in plan.processes:
        where = "a card" if process.gpus else "host"
        total = f"{size(process.bytes_each)}" if not process.gpus else size(process.card_bytes)
        table.add_row(Text(process.name), process.phase, str(process.count), f"all, on {where}", total, style="bold")
        rows = [(role, taken, "") for role, taken in process.held.items()]
        rows += [(r, taken, moment) for moment, roles in process.moments.items() for r, taken in roles.items()]
        rows += [(role, taken, "host") for role, taken in process.host.items()]
        for role, taken, moment in rows:
            table.add_row("", moment, "", role, size(taken))
    return table


def _card(card: Card, there: float | None) -> Table:
    """What lies on the fullest card."""
    held = "" if there is None else f", of {size(there)}"
    table = _table(f"the fullest card, while {card.phase}: {size(card.needed_bytes)}{held}", "process", "memory")
    for name, taken in card.bytes_of.items():
        table.add_row(Text(name), size(taken))
    return table


def _steps(plan: Plan) -> Table:
    table = _table(f"a step, of {plan.run_steps}", "domain", "rollouts", "tokens, about", "at most")
    for step in plan.steps:
        table.add_row(Text(step.domain), str(step.rollouts), _count(step.tokens), _count(step.most_tokens))
    table.add_row(
        "all",
        str(sum(step.rollouts for step in plan.steps)),
        _count(sum(step.tokens for step in plan.steps)),
        _count(sum(step.most_tokens for step in plan.steps)),
        style="bold",
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number >= len(columns) - 2 else "left", overflow="fold")
    return table


def out_of(there: float | None, where: str) -> str:
    """``, of 8.0 GiB here``; nothing where that is not known."""
    return "" if there is None else f", of {size(there)} {where}"


def _count(number: float) -> str:
    """For example 395,620, or 15.0 B."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number:,.0f}"

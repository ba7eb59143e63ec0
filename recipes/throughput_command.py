"""`mopd throughput`: how fast architectures could write on named cards, with and without guesses, at what price.

Everything follows from configurations, a card's data sheet and the tokens a round that the reader gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mopd.distill.errors import UserError
from mopd.distill.models.families import experts_of, family_of
from mopd.distill.models.heads import plain_head
from mopd.distill.models.mtp import DRAFT_FAMILIES, DraftHeads
from mopd.distill.models.throughput import CARDS, Accelerator, Speed, WritingCost, speed
from mopd.recipes.architectures_command import config_of
from mopd.recipes.resolve.checkpoints import empty_model

ROWS = (1, 4, 16, 64, 256)
NOTE = """Bounds from arithmetic: the larger of what is read over the bandwidth and what is multiplied over the FLOPs of
all cards, as if they shared both perfectly. Guesses are those of the first draft layer, fed with itself."""


def writing_of(config: Any, *, weight_bytes: float) -> WritingCost:
    """What writing costs a model of this configuration.

    Raises:
        UserError: none can be made.
    """
    text = config.get_text_config()
    model, cost = empty_model(config)
    heads = 0
    if text.model_type in DRAFT_FAMILIES:
        with torch.device("meta"):
            layer = DraftHeads(model, 1)
        heads = sum(p.numel() for p in layer.parameters()) + plain_head(model).weight.numel()
    experts = experts_of(text)
    chosen = int(getattr(text, family_of(text).experts_per_token, None) or 0) if experts else 0
    return WritingCost(cost, experts, chosen, heads, weight_bytes)


def speeds(
    writing: WritingCost,
    card: Accelerator,
    *,
    cards: int,
    context: int,
    hourly: float,
    guesses: int,
    tokens_per_round: float,
) -> list[tuple[Speed, Speed | None]]:
    """For batches of :data:`ROWS` rows: without guesses, and with them where the model has draft heads."""
    rows: list[tuple[Speed, Speed | None]] = []
    for n in ROWS:
        how: dict[str, Any] = {"rows": n, "context": context, "hourly": hourly}
        plain, drafted = speed(writing, card, cards, **how), None
        if writing.head_parameters:
            drafted = speed(writing, card, cards, **how, guesses=guesses, tokens_per_round=tokens_per_round)
        rows.append((plain, drafted))
    return rows


def show(
    names: Sequence[str],
    console: Console,
    *,
    card: str,
    cards: int | None,
    context: int,
    hourly: float,
    weight_bytes: float,
    guesses: int,
    tokens_per_round: float,
) -> None:
    """Print a table for each architecture.

    Args:
        cards: how many share the work; None: as many as hold the weights in nine tenths of their memory.

    Raises:
        UserError: no such card, or a name has no configuration.
    """
    if card not in CARDS:
        raise UserError(f"no card {card!r} is known; take one of {', '.join(CARDS)}")
    for name in names:
        writing = writing_of(config_of(name), weight_bytes=weight_bytes)
        needed = math.ceil(writing.cost.total_parameters * weight_bytes / (0.9 * CARDS[card].memory))
        count = cards or 1 << max(0, math.ceil(math.log2(needed)))
        title = f"{name}: {count} x {CARDS[card].name}, {context:,} tokens before, {weight_bytes:g} bytes a weight; "
        title += f"with {guesses} guesses {tokens_per_round:g} tokens a round"
        columns = ("tokens/s a row", "in all", "a million", "a row, with guesses", "in all", "a million")
        table = Table("rows", *columns, title=title, title_justify="left")
        how: dict[str, Any] = {"cards": count, "context": context, "hourly": hourly}
        for plain, drafted in speeds(writing, CARDS[card], **how, guesses=guesses, tokens_per_round=tokens_per_round):
            cells = [cell for s in (plain, drafted) for cell in _cells(s)]
            table.add_row(str(plain.rows), *cells)
        console.print(table)
    console.print(NOTE, highlight=False)


def _cells(speed: Speed | None) -> tuple[str, str, str]:
    if speed is None:
        return "no heads known", "", ""
    return f"{speed.each:,.0f}", f"{speed.together:,.0f}", f"{speed.price:.3f}"

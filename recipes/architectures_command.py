"""`mopd compare-architectures`: what models of several architectures hold, keep of a token and compute, side by side.

Everything follows from configurations: the model is built on the meta device, without a weight. The shipped ones are
those of the models' repositories on the Hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from mopd.distill.errors import UserError
from mopd.distill.models.flops import ModelCost
from mopd.distill.recipe.model_names import is_path
from mopd.recipes.check.offline import known_config
from mopd.recipes.resolve.checkpoints import empty_model

COMPARED = (
    "XiaomiMiMo/MiMo-V2-Flash",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-V3",
)
LENGTHS = (4096, 32768, 262144)
"""Tokens of a sequence at which caches and compute are shown."""
NOTE = """Computed from configurations. A multiplication and an addition are two FLOPs; attention is counted causally,
within its window, with the keys and values of every head: those of latent attention (MLA) too, which caches less."""
VALUE_BYTES = 2
"""Of a cached value: bfloat16."""


@dataclass(frozen=True, slots=True)
class ArchitectureRow:
    """An architecture in numbers.

    Attributes:
        name: a Hub id or a path.
        layers: as in ``39 sliding (128 before a token), 9 global``.
        total, active: parameters; those that a token passes. Draft heads are no part of either.
        cached_bytes: keys and values of a sequence, by its tokens; None where a family's are not known.
        prefill_flops: of a token of a prompt, the mean over a prompt of so many tokens.
        decode_flops: of a token that is written after so many.
    """

    name: str
    layers: str
    total: int
    active: int
    cached_bytes: dict[int, int | None]
    prefill_flops: dict[int, float]
    decode_flops: dict[int, int]


def architecture_row(name: str, config: Any, lengths: Sequence[int] = LENGTHS) -> ArchitectureRow:
    """The numbers of a transformers configuration."""
    _, cost = empty_model(config)
    return ArchitectureRow(
        name=name,
        layers=_layers(cost),
        total=cost.total_parameters,
        active=cost.active_parameters,
        cached_bytes={n: cost.cached_bytes(n, value_bytes=VALUE_BYTES) for n in lengths},
        prefill_flops={n: cost.forward([n]) / n for n in lengths},
        decode_flops={n: cost.next_token(n + 1) for n in lengths},
    )


def config_of(name: str) -> Any:
    """The configuration of a shipped Hub id, or at a path: a config.json, or a folder that has one.

    Raises:
        UserError: there is none.
    """
    if not is_path(name):
        return known_config(name, {})
    path = Path(name)
    if not (path if path.suffix == ".json" else path / "config.json").is_file():
        raise UserError(f"there is no configuration at {name}; give a config.json, or a folder that has one")
    return AutoConfig.from_pretrained(path)


def rows_of(names: Sequence[str]) -> list[ArchitectureRow]:
    """A row for each name, in order; of none, for those that are shipped to be compared.

    Raises:
        UserError: a name has no configuration here, or none of a language model.
    """
    return [architecture_row(name, config_of(name)) for name in (names or COMPARED)]


def as_json(rows: Sequence[ArchitectureRow]) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [asdict(row) for row in rows]


def show(rows: Sequence[ArchitectureRow], console: Console) -> None:
    """Print the comparison as tables."""
    sizes = Table("architecture", "parameters", "a token passes", "layers", title="architectures", title_justify="left")
    for row in rows:
        sizes.add_row(row.name, _billions(row.total), _billions(row.active), row.layers)
    console.print(sizes)
    lengths = list(rows[0].cached_bytes)
    for title, cells in (
        ("keys and values in bfloat16, KiB a token (a sequence of that length, MiB)", _cache_cells),
        ("GFLOPs a token of a prompt", lambda row, n: f"{row.prefill_flops[n] / 1e9:,.1f}"),
        ("GFLOPs a token that is written after so many", lambda row, n: f"{row.decode_flops[n] / 1e9:,.1f}"),
    ):
        table = Table("architecture", title=title, title_justify="left")
        for n in lengths:
            table.add_column(f"{n // 1024}k tokens", justify="right")
        for row in rows:
            table.add_row(row.name, *(cells(row, n) for n in lengths))
        console.print(table)
    console.print(NOTE, highlight=False)


def _cache_cells(row: ArchitectureRow, tokens: int) -> str:
    held = row.cached_bytes[tokens]
    return "not known" if held is None else f"{held / tokens / 1024:,.1f} ({held / 1024**2:,.0f})"


def _layers(cost: ModelCost) -> str:
    windows = [layer.window for layer in cost.attention]
    sliding = [window for window in windows if window is not None]
    words = [f"{len(sliding)} sliding ({sliding[0] - 1} before a token)"] if sliding else []
    return ", ".join([*words, f"{len(windows) - len(sliding)} global"] if len(sliding) < len(windows) else words)


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f} B"

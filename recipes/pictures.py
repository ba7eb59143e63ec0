"""Pictures of the documentation, drawn from configurations and from the loop: SVG text, the same for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import escape

from mopd.recipes.architectures_command import ArchitectureRow
from mopd.recipes.resolve.checkpoints import empty_model

STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.small{font-size:11px;fill:#59636e}.title{font-weight:600}"
    ".box{fill:#f6f8fa;stroke:#8c959f}.s{fill:#ddf4ff;stroke:#0969da}.g{fill:#fff8c5;stroke:#9a6700}"
    ".d{fill:#fbefff;stroke:#8250df}.line{stroke:#59636e;fill:none;marker-end:url(#tip)}"
    ".b0{fill:#0969da}.b1{fill:#54aeff}.b2{fill:#b6e3ff}"
)
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#59636e"/></marker></defs>'
)


@dataclass(frozen=True, slots=True)
class Box:
    """A box with lines of text: its left upper corner, its size and its kind."""

    x: float
    y: float
    width: float
    height: float
    lines: Sequence[str]
    kind: str = "box"


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f'<title>{escape(title)}</title><style>{STYLE}</style>{TIP}<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def _box(box: Box) -> list[str]:
    parts = [
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="6" class="{box.kind}"/>'
    ]
    top = box.y + box.height / 2 - 8 * (len(box.lines) - 1) + 4
    for number, words in enumerate(box.lines):
        parts.append(_text(box.x + box.width / 2, top + 16 * number, words, "" if number == 0 else "small"))
    return parts


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path class="line" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'


def cache_picture(rows: Sequence[ArchitectureRow]) -> str:
    """Bars: KiB of keys and values a token, for every architecture at every length.

    Raises:
        ValueError: a row's cache is not known.
    """
    lengths = list(rows[0].cached_bytes)
    values: list[tuple[ArchitectureRow, list[float]]] = []
    for row in rows:
        held = [row.cached_bytes[n] for n in lengths]
        if None in held:
            raise ValueError(f"the cache of {row.name} is not known")
        values.append((row, [(h or 0) / n / 1024 for h, n in zip(held, lengths, strict=True)]))
    most = max(max(bars) for _, bars in values)
    left, bar, full = 210, 14, 420
    parts = [_text(12, 24, "Keys and values in bfloat16, KiB a token", "title", "start")]
    for number, n in enumerate(lengths):
        x = left + 130 * number
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" class="b{number}"/>')
        parts.append(_text(x + 18, 46, f"{n // 1024}k tokens", "small", "start"))
    y = 64
    for row, bars in values:
        parts.append(_text(left - 8, y + 18, row.name.rpartition("/")[2], anchor="end"))
        parts.append(
            _text(left - 8, y + 34, f"{row.total / 1e9:,.1f} B, active {row.active / 1e9:,.1f} B", "small", "end")
        )
        for number, value in enumerate(bars):
            top = y + number * (bar + 2)
            parts.append(
                f'<rect x="{left}" y="{top}" width="{value / most * full:.1f}" height="{bar}" class="b{number}"/>'
            )
            parts.append(_text(left + value / most * full + 6, top + 11, f"{value:,.1f}", "small", "start"))
        y += len(lengths) * (bar + 2) + 14
    return _svg(left + full + 60, y, parts, "Keys and values a token by architecture")


def blocks_picture(config: Any, name: str) -> str:
    """One block of each kind of a MiMo-V2-Flash: a sliding layer, a global one, and a draft head."""
    model: Any = empty_model(config)[0]
    kinds = config.layer_types
    width, column = 250, 270
    parts: list[str] = [_text(12, 24, f"{name}: one block of each kind", "title", "start")]
    last = config.num_hidden_layers - 1
    for number, kind in enumerate(("sliding_attention", "full_attention")):
        layers = [i for i, k in enumerate(kinds) if k == kind]
        layer = max(layers) if kind == "sliding_attention" else min((i for i in layers if i), default=last)
        css = "s" if kind == "sliding_attention" else "g"
        attention = model.model.layers[layer].self_attn
        words = "sliding layer" if css == "s" else "global layer"
        column_of = [
            Box(0, 0, 0, 34, ["to the next layer"]),
            Box(0, 0, 0, 62, ["+ feed-forward", *_feed_forward(config, layer)], css),
            Box(0, 0, 0, 30, ["RMSNorm"]),
            Box(0, 0, 0, 110, ["+ attention", *_attention_words(config, attention, kind)], css),
            Box(0, 0, 0, 30, ["RMSNorm"]),
            Box(0, 0, 0, 34, [f"hidden states of {config.hidden_size:,}"]),
        ]
        title = f"{words}, {len(layers)} of {config.num_hidden_layers}"
        parts += _column(12 + column * number, width, title, column_of)
    heads = config.num_attention_heads
    draft = [
        Box(0, 0, 0, 34, ["the model's own output head", ]),
        Box(0, 0, 0, 30, ["RMSNorm (final_layernorm)"]),
        Box(0, 0, 0, 94, ["a sliding block, dense", f"{heads} heads, window of {config.sliding_window - 1} and itself",
                          f"feed-forward of {config.intermediate_size:,}"], "d"),
        Box(0, 0, 0, 48, ["eh_proj", f"{2 * config.hidden_size:,} to {config.hidden_size:,}"], "d"),
        Box(0, 0, 0, 48, ["enorm, hnorm", "each its own RMSNorm"]),
        Box(0, 0, 0, 48, ["embedding of token t + 1", "and last hidden state of t"]),
    ]  # fmt: skip
    parts += _column(12 + 2 * column, width, "draft head: guesses token t + 2", draft)
    return _svg(12 + 3 * column, 470, parts, f"Blocks of {name}")


def _column(x: float, width: float, title: str, boxes: Sequence[Box]) -> list[str]:
    """Boxes below each other; what is computed runs from the lowest to the uppermost."""
    parts, y = [_text(x + width / 2, 52, title, "title")], 66.0
    for number, box in enumerate(boxes):
        if number:
            parts.append(_arrow(x + width / 2, y, x + width / 2, y - 15))
        parts += _box(Box(x, y, width, box.height, box.lines, box.kind))
        y += box.height + 16
    return parts


def _attention_words(config: Any, attention: Any, kind: str) -> list[str]:
    keys = attention.k_proj.out_features // attention.head_dim
    theta = config.rope_parameters[kind]["rope_theta"]
    seen = f"{config.sliding_window - 1} tokens before and itself" if kind == "sliding_attention" else "all before"
    sink = "a sink for each query head" if attention.sinks is not None else "no sinks"
    return [
        f"{config.num_attention_heads} query heads of {attention.head_dim}, {keys} key heads",
        f"values of {attention.v_head_dim}, rope theta {theta:,.0f}",
        f"sees {seen}",
        sink,
    ]


def _feed_forward(config: Any, layer: int) -> list[str]:
    if config.mlp_layer_types[layer] != "sparse":
        return [f"dense, {config.intermediate_size:,} wide"]
    chosen = f"{config.num_experts_per_tok} of {config.n_routed_experts} experts"
    return [f"{chosen}, {config.moe_intermediate_size:,} wide", "chosen by a sigmoid router"]


def pipeline_picture() -> str:
    """One step of the loop: what acts, what grades, what moves, and what goes from one to the next."""
    top, height = 52, 76
    boxes = [
        Box(12, top, 170, height, ["prompts", "of every domain, by share"]),
        Box(222, top, 190, height,
            ["rollouts: Sampler.sample", "the student itself writes;", "keyed random numbers"], "s"),
        Box(452, top, 200, height,
            ["scores: Grader.score", "teachers in Ray actors, each", "grades its domain's tokens"], "g"),
        Box(692, top, 190, height,
            ["update: Student.update", "DeepSpeed's ranks; one loss,", "shares by domain"], "d"),
    ]  # fmt: skip
    parts = [_text(12, 26, "A step: act, grade, move", "title", "start")]
    for box in boxes:
        parts += _box(box)
    middle = top + height / 2
    for before, after in pairwise(boxes):
        parts.append(_arrow(before.x + before.width, middle, after.x - 2, middle))
    bottom = top + height
    parts.append(f'<path class="line" d="M787 {bottom}V{bottom + 26}H317V{bottom + 3}"/>')
    parts.append(
        _text(552, bottom + 42, "weights, by version: rollouts are written by what the gradient moves", "small")
    )
    return _svg(896, bottom + 58, parts, "A step of mopd: prompts, rollouts, scores, update")

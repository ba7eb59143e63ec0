"""How many bytes a model takes while it learns, writes and scores, by role: what follows from its configuration.

Shape legend of formulas: L layers, H hidden units, Q and K widths of all query heads and of all key-value heads, I
width of a feed-forward layer, V vocabulary, k experts of a token, d bytes of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mopd.distill.models.families import experts_of, family_of

NORM_VALUES = 6
"""Times H that a layer keeps for its backward pass: two normalisations, what goes into them and into what follows. A
count of what autograd saves of llama, qwen3 and qwen3_moe in transformers 5.23 (tests/unit/distill/models)."""
WIDENED_VALUES = 2
"""More of them where weights have two bytes, because normalisations compute in float32."""
GATED_VALUES = 4
"""Times I: gate, its activation, the other factor, their product."""
ATTENTION_VALUES = 4
"""Times Q and times K: before and after normalisation and rotation, and what comes out; with no normalisation, half."""
MAPS = {4: 1.5, 2: 3.0}
"""Values kept per head and pair of tokens by attention that stores its maps, by the bytes of a weight: softmax is in
float32."""
BUCKET_VALUES = 500_000_000
"""Gradients that ZeRO gathers in one buffer before it reduces them; DeepSpeed's `reduce_bucket_size`."""
LIVE_VALUES = 1_000_000_000
"""Weights that stage 3 gathers at most while it learns; DeepSpeed's `stage3_max_live_parameters`."""
DRAWN_BYTES = 32
"""Of each token of the vocabulary, to draw one: logits and log-probabilities in four bytes, three sums in eight."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on, read from a configuration of transformers.

    Attributes:
        feed_forward: I of one token: that of a dense layer, or of all its experts together.
        routed: experts that a token is sent to; 0 in a dense model.
        keeps_maps: whether attention stores its maps, as eager attention does.
        window: tokens that a sliding layer sees; None where no layer slides.
        sliding: how many of the layers slide.
    """

    layers: int
    hidden: int
    queries: int
    keys_values: int
    heads: int
    feed_forward: int
    routed: int
    vocabulary: int
    keeps_maps: bool
    window: int | None = None
    sliding: int = 0


def shape_of(config: Any) -> ModelShape:
    """The shape that a configuration gives a model."""
    text, family = config.get_text_config(), family_of(config.get_text_config())
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    query = getattr(text, family.query_width, None) or width
    value = getattr(text, family.value_width, None) or width
    routed = getattr(text, family.experts_per_token, 0) or 0 if experts_of(text) else 0
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    expert = getattr(text, "moe_intermediate_size", None) or dense
    kinds = getattr(text, "layer_types", None) or ()
    window = getattr(text, "sliding_window", None)
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        queries=heads * max(query, value),
        keys_values=groups * (query + value) // 2,
        heads=heads,
        feed_forward=routed * expert if routed else dense,
        routed=routed,
        vocabulary=text.vocab_size,
        keeps_maps=getattr(text, "_attn_implementation", None) == "eager",
        window=window,
        sliding=sum(kind == "sliding_attention" for kind in kinds) if window else 0,
    )


def layer_values(shape: ModelShape, itemsize: int, width: float) -> float:
    """Values that one layer keeps of a token for its backward pass: ``6 H + 4 I + 4 (Q + K)``.

    Experts add ``2 k H``, what is sent to them and what comes back; eager attention its maps.

    Args:
        width: tokens of the sequence that it belongs to.
    """
    norms = NORM_VALUES + (WIDENED_VALUES if itemsize == 2 else 0) + 2 * shape.routed
    values = norms * shape.hidden + GATED_VALUES * shape.feed_forward
    values += ATTENTION_VALUES * (shape.queries + shape.keys_values)
    return values + (MAPS[itemsize] * shape.heads * width if shape.keeps_maps else 0.0)


def activation_bytes(shape: ModelShape, *, tokens: float, width: float, itemsize: int, recomputed: bool) -> float:
    """Of a microbatch of so many padded tokens; ``recomputed``: each layer's input alone, and one layer whole."""
    layer = layer_values(shape, itemsize, width)
    kept = shape.layers * shape.hidden + layer if recomputed else shape.layers * layer
    return tokens * kept * itemsize


def loss_bytes(shape: ModelShape, *, trained: float, itemsize: int, rows: int) -> float:
    """Logits of the tokens that are learnt from, and what a loss makes of them: ``V trained (d + 4 rows)``.

    Args:
        trained: how many tokens of a microbatch those are; no others have logits.
        rows: float32 rows of V values that the loss holds of each, see :class:`distill.loss.registry.LossSpec`.
    """
    return shape.vocabulary * trained * (itemsize + 4 * rows)


def scored_bytes(shape: ModelShape, *, trained: float, itemsize: int) -> float:
    """Logits of the tokens that a teacher is asked about, and two float32 rows of them: ``V trained (d + 8)``."""
    return shape.vocabulary * trained * (itemsize + 8)


def cache_bytes(shape: ModelShape, *, rows: float, length: float, itemsize: int) -> float:
    """Keys and values of ``rows`` sequences of ``length`` tokens; a sliding layer keeps its window. One layer is held
    twice while it grows."""
    kept = (shape.layers - shape.sliding) * length + shape.sliding * min(length, shape.window or length)
    return rows * 2 * shape.keys_values * itemsize * (kept + kept / max(1, shape.layers))


def drawing_bytes(shape: ModelShape, *, rows: float, itemsize: int) -> float:
    """Logits of one position of each row, and what drawing a token takes: ``V (d + 32)`` a row."""
    return rows * shape.vocabulary * (itemsize + DRAWN_BYTES)


def passing_bytes(shape: ModelShape, *, tokens: float, width: float, itemsize: int) -> float:
    """What one layer holds of tokens that pass without a gradient: a prompt that is read, a rollout that is scored."""
    values = 2 * shape.hidden + 3 * shape.feed_forward + shape.queries + 2 * shape.keys_values
    maps = 2 * shape.heads * width if shape.keeps_maps else 0.0
    return tokens * (values + maps) * itemsize


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters of a rank that are spread alike: how many, how many of them are trained, and over how many ranks."""

    values: float
    trained: float
    ranks: int


def training_bytes(
    parts: tuple[Held, ...], *, zero_stage: int, itemsize: int, states: int, on_card: bool
) -> Mapping[str, float]:
    """Weights, gradients and optimizer of one rank under ZeRO.

    Weights ``d``, sharded by stage 3. The optimizer keeps a float32 copy (4; no stage 0 does) and its ``states`` (8 for
    Adam). Gradients are summed in float32 (4, sharded from stage 1 on), and pass through a buffer of
    :data:`BUCKET_VALUES`, of which a process on a CPU touches what it has.

    Source: Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3, with DeepSpeed 0.19's buffers.
    """
    weights = gradients = optimizer = 0.0
    for part in parts:
        shard = part.ranks if zero_stage >= 1 else 1
        weights += part.values * itemsize / (part.ranks if zero_stage == 3 else 1)
        optimizer += part.trained * ((4 if zero_stage >= 1 else 0) + states) / shard
        gradients += part.trained * 4 / shard
    if zero_stage >= 1:
        trained = sum(part.trained for part in parts)
        gradients += itemsize * (BUCKET_VALUES if on_card else min(trained, BUCKET_VALUES))
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def gathered_bytes(parts: tuple[Held, ...], *, zero_stage: int, itemsize: int, writing: bool) -> float:
    """What a rank holds beside its own part of the weights, under stage 3: all others' while it writes, those of the
    layers at hand while it learns."""
    if zero_stage < 3:
        return 0.0
    others = sum(part.values * (1 - 1 / part.ranks) for part in parts)
    return itemsize * (others if writing else min(others, LIVE_VALUES))

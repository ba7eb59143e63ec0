"""What a model's forward, training step and generation cost, in floating-point operations.

One multiplication and one addition are two FLOPs. Counted is what the model needs, not what a machine does: padding and
recomputed activations are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mopd.distill.models.families import experts_of, family_of

_NOT_TEXT = re.compile(r"(?:^|\.)(?:vision|visual|vit|image|audio|sound|multi_modal|multimodal|mm_|embed_vision)")
"""Names of what a model has for images and sounds."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One layer's attention.

    Attributes:
        heads: of queries.
        query_dim, value_dim: width of a query and of a value.
        window: tokens that a query sees, itself included; None: all.
        cached: values that a cache keeps of a token: keys and values of all their heads, or what they are made of
            (multi-head latent attention); None: not known of this family.
    """

    heads: int
    query_dim: int
    value_dim: int
    window: int | None
    cached: int | None = None

    def cached_values(self, tokens: int) -> int | None:
        """What a cache keeps after so many tokens: in a sliding layer what the next one sees besides itself."""
        return None if self.cached is None else self.cached * min(tokens, (self.window or tokens + 1) - 1)

    def forward_flops(self, length: int) -> int:
        """Scores and weighted values of a causal sequence: ``2 heads (d_query + d_value) sum_t min(t + 1, window)``."""
        full = min(length, self.window or length)
        seen = full * (full + 1) // 2 + (length - full) * full
        return 2 * self.heads * (self.query_dim + self.value_dim) * seen


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a forward and a training step of a model cost, in FLOPs.

    Source: Kaplan et al., arXiv 2001.08361, section 2.1: 2 N a token forward, twice that backward; attention as in
    Chowdhery et al. (PaLM), arXiv 2204.02311, appendix B, but counted causally and within its window.

    Attributes:
        total_parameters: all.
        active_parameters: those a token passes: all but the experts it isn't routed to.
        matmul_parameters: N, active ones that multiply: no norms, no biases, no embedding unless it is the head, too.
    """

    total_parameters: int
    active_parameters: int
    matmul_parameters: int
    attention: tuple[AttentionShape, ...]

    def forward(self, lengths: Iterable[int]) -> int:
        """Scoring sequences of these lengths, in tokens."""
        return sum(
            2 * self.matmul_parameters * length + sum(layer.forward_flops(length) for layer in self.attention)
            for length in lengths
        )

    def generate(self, lengths: Iterable[int]) -> int:
        """Writing sequences of these lengths, prompts included, with a cache: the last token is never fed back."""
        return self.forward(length - 1 for length in lengths)

    def next_token(self, length: int) -> int:
        """Writing one token after ``length - 1`` others that lie in a cache."""
        return self.forward([length]) - self.forward([length - 1])

    def cached_bytes(self, tokens: int, *, value_bytes: int = 2) -> int | None:
        """Bytes of a sequence's keys and values after so many tokens; None where a layer's are not known."""
        layers = [layer.cached_values(tokens) for layer in self.attention]
        known = [values for values in layers if values is not None]
        return sum(known) * value_bytes if len(known) == len(layers) else None

    def train(self, lengths: Iterable[int]) -> int:
        """Forward and backward over sequences of these lengths: three times the forward."""
        return 3 * self.forward(lengths)


def model_cost(model: torch.nn.Module) -> ModelCost:
    """The cost of a transformers causal language model, dense or mixture of experts; it may be on the meta device.

    Args:
        model: as transformers builds it, with its ``config``: before an engine shards or renames its parameters.

    Raises:
        ValueError: it has experts and its configuration doesn't say how many a token is routed to.
    """
    whole: Any = model.config
    config = whole.get_text_config()
    total = active = matmul = 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        used = size * _routed_share(config, name)
        total, active = total + size, active + used
        # Tied weights come once, under the embedding's name; as the head they multiply.
        is_lookup = "embed" in name and not getattr(config, "tie_word_embeddings", False)
        if parameter.ndim >= 2 and not is_lookup:
            matmul += used
    return ModelCost(
        total_parameters=int(total),
        active_parameters=round(active),
        matmul_parameters=round(matmul),
        attention=tuple(_attention(config, layer, _cached(model, layer)) for layer in range(config.num_hidden_layers)),
    )


def _routed_share(config: Any, name: str) -> float:
    """The part of a parameter that one token of text passes: chosen experts over all of them, none of what reads images
    or sounds, else 1."""
    if _NOT_TEXT.search(name):
        return 0.0
    if not re.search(r"(?:^|\.)experts\.", name):
        return 1.0
    experts = experts_of(config)
    chosen = getattr(config, family_of(config).experts_per_token, None)
    if not experts or not chosen:
        raise ValueError(f"{config.model_type}: {name} belongs to experts, but the configuration has no number of them")
    return chosen / experts


_CACHED = re.compile(r"\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|kv_a_proj_with_mqa)\.weight$")
"""Projections whose outputs a cache keeps; the last are the latents of DeepSeek-V2, arXiv 2405.04434, section 2.1.3."""


def _cached(model: torch.nn.Module, layer: int) -> int | None:
    """Values that a layer's cache keeps of a token: as many as these projections have rows."""
    rows = [
        parameter.shape[0]
        for name, parameter in model.named_parameters()
        if (matched := _CACHED.search(name)) and int(matched[1]) == layer
    ]
    return sum(rows) or None


def _attention(whole: Any, layer: int, cached: int | None) -> AttentionShape:
    """A layer's shape; one of a kind that is not named full or sliding is counted as seeing all tokens.

    A family without attention heads has no attention: all that its layers multiply by are their parameters.
    """
    config = whole.per_layer_config[layer] if getattr(whole, "is_heterogeneous", False) else whole
    heads, family = getattr(config, "num_attention_heads", None), family_of(whole)
    if not heads:
        return AttentionShape(heads=0, query_dim=0, value_dim=0, window=None, cached=cached)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    slides = window is not None and (layer_types is None or layer_types[layer] == "sliding_attention")
    return AttentionShape(
        heads=heads,
        query_dim=getattr(config, family.query_width, None) or width,
        value_dim=getattr(config, family.value_width, None) or width,
        window=window if slides else None,
        cached=cached,
    )

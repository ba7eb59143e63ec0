"""Attention block by block: its cost grows with tokens x window, and no tensor has tokens x tokens entries.

transformers computes a sliding layer with sinks as it does a global one: every token is scored against every other.
Here a block of queries meets the keys that its window reaches, forward and backward, and keeps one number a query for
the backward. Registered with transformers under :data:`BANDED` and :data:`LONG`; :func:`set_attention` chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from mopd.distill.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AttnImplementation: TypeAlias = Literal["auto", "eager", "sdpa", "banded"]
"""What a recipe may write; see :func:`set_attention`."""

BANDED, LONG = "banded", "banded_where_long"
"""Names in transformers' registry: blocks for every forward of several tokens; blocks where :func:`is_long` says so."""

EAGER = "eager_attention_forward"
"""What every family of transformers calls its eager attention."""

LONG_TOKENS, LONG_WINDOWS = 512, 4
BLOCK, GLOBAL_BLOCK = 128, 256
"""Queries of one block, in sliding and in global layers."""


def is_long(tokens: int, window: int | None) -> bool:
    """Whether ``auto`` computes a forward of this many tokens by blocks: from 512, and from four windows."""
    return tokens >= max(LONG_TOKENS, LONG_WINDOWS * (window or 0))


@dataclass(slots=True)
class BlockMask:
    """Who sees whom, asked block by block: what a layer is given in the place of a mask of all pairs.

    Attributes:
        visible: transformers' mask function: whether a query sees a key, by indices ``(batch, head, query, key)``.
        batch: sequences.
        queries, keys: how many there are; the first has the index ``query_offset`` or ``key_offset``.
        window: tokens that a query sees at most, itself included; None: all before it.
    """

    visible: Callable[..., Tensor]
    batch: int
    queries: int
    keys: int
    query_offset: int
    key_offset: int
    window: int | None
    device: torch.device
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def blocks(self) -> list[tuple[slice, slice]]:
        """Slices of the queries, and for each of the keys that any of its queries may see."""
        size = GLOBAL_BLOCK if self.window is None else BLOCK
        pairs: list[tuple[slice, slice]] = []
        for start in range(0, self.queries, size):
            end = min(start + size, self.queries)
            shift = self.query_offset - self.key_offset
            first = 0 if self.window is None else max(0, start + shift - self.window + 1)
            pairs.append((slice(start, end), slice(min(first, self.keys), min(end + shift, self.keys))))
        return pairs

    def of(self, queries: slice, keys: slice) -> Tensor:
        """Whether each query of a block sees each of its keys: ``(B, 1, 1, queries, keys)``."""
        kept = self._kept.get(queries.start)
        if kept is not None:
            return kept
        batch = torch.arange(self.batch, device=self.device)[:, None, None, None]
        query = torch.arange(queries.start, queries.stop, device=self.device)[None, None, :, None] + self.query_offset
        key = torch.arange(keys.start, keys.stop, device=self.device)[None, None, None, :] + self.key_offset
        seen = self.visible(batch, torch.zeros_like(batch[:1]), query, key)
        seen = seen.expand(-1, -1, queries.stop - queries.start, keys.stop - keys.start).unsqueeze(2)
        if self.window is not None:  # all layers of a kind share it; those of global layers would add up to T x T
            self._kept[queries.start] = seen
        return seen


class _Blocks(torch.autograd.Function):
    """Softmax attention with sinks by blocks; the backward computes each block's probabilities again.

    Source: the softmax by blocks and its gradient are FlashAttention's, arXiv 2205.14135, algorithms 1 and 4, with a
    block of queries against all its keys at once; a sink is one more score without a value, arXiv 2508.10925, sec. 2.2.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        query, key, value, sinks, mask, scaling = given
        out = value.new_empty(*query.shape[:-1], value.shape[-1])  # not per token
        logsums = query.new_empty(*query.shape[:-1], 1, dtype=_wide(query))  # not per token
        for queries, keys in mask.blocks():
            scores = _scores(query[..., queries, :], key[..., keys, :], mask.of(queries, keys), scaling)
            largest = scores.amax(-1, keepdim=True)
            if sinks is not None:
                largest = torch.maximum(largest, _by_head(sinks, largest))
            total = scores.sub_(largest).exp_().sum(-1, keepdim=True)  # in place: a block is most of the memory
            if sinks is not None:
                total = total + (_by_head(sinks, largest) - largest).exp()
            weighted = _times(scores.div_(total).to(value.dtype), value[..., keys, :])
            out[..., queries, :] = weighted
            logsums[..., queries, :] = largest + total.log()
        ctx.save_for_backward(query, key, value, sinks, out, logsums)
        ctx.mask, ctx.scaling = mask, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks, out, logsums = ctx.saved_tensors
        (d_out,) = gradients
        wide = _wide(query)
        inner = (d_out.to(wide) * out.to(wide)).sum(-1, keepdim=True)
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros_like(t, dtype=wide) for t in (key, value))
        for queries, keys in ctx.mask.blocks():
            q, k, v, g = query[..., queries, :], key[..., keys, :], value[..., keys, :], d_out[..., queries, :]
            probs = _scores(q, k, ctx.mask.of(queries, keys), ctx.scaling).sub_(logsums[..., queries, :]).exp_()
            d_value[..., keys, :] += _folded(probs.to(g.dtype)).mT @ _folded(g)
            d_scores = _times(g, v.mT).to(wide).sub_(inner[..., queries, :]).mul_(probs).mul_(ctx.scaling).to(q.dtype)
            d_query[..., queries, :] = _times(d_scores, k)
            d_key[..., keys, :] += _folded(d_scores).mT @ _folded(q)
        d_sinks = None
        if sinks is not None:
            lost = (_by_head(sinks, logsums) - logsums).exp() * inner
            d_sinks = -lost.sum((0, 3, 4)).view_as(sinks).to(sinks.dtype)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None


def _folded(rows: Tensor) -> Tensor:
    """``(B, key heads, query heads of each, queries, D)`` with the query heads of a key head as further queries."""
    return rows.flatten(2, 3)


def _times(rows: Tensor, of_keys: Tensor) -> Tensor:
    """A product of ``(B, key heads, group, queries, N)`` with ``(B, key heads, N, M)``; keys are not repeated."""
    return (_folded(rows) @ of_keys).unflatten(2, rows.shape[2:4])


def _scores(query: Tensor, key: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Scaled scores of a block, wide; unseen ones are the least number, so that a row without keys stays finite."""
    scores = _times(query, key.mT).to(_wide(query)).mul_(scaling)
    return scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums are taken in: float32, or float64 where that is the input's."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _by_head(sinks: Tensor, like: Tensor) -> Tensor:
    return sinks.to(like.dtype).view(1, like.shape[1], like.shape[2], 1, 1)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: BlockMask, scaling: float, sinks: Tensor | None
) -> Tensor:
    """Attention with a window and sinks.

    Args:
        query: ``(B, heads, queries, D)``.
        key: ``(B, key heads, keys, D)``; key heads divide heads.
        value: ``(B, key heads, keys, D_value)``.
        scaling: of the scores.
        sinks: ``(heads,)``, scores that take probability and give no value; None: there are none.

    Returns:
        ``(B, heads, queries, D_value)``. Rows of queries that see no key are finite and mean nothing.
    """
    grouped = query.unflatten(1, (key.shape[1], query.shape[1] // key.shape[1]))
    return _Blocks.apply(grouped, key, value, sinks, mask, scaling).flatten(1, 2)  # pyright: ignore[reportOptionalMemberAccess]


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """One layer's attention, as transformers' ``AttentionInterface`` calls it: ``(B, queries, heads, D_value)``.

    Where the mask is a plain tensor (a few tokens, or a mask of the caller's own), it is the family's own eager one.
    """
    if not isinstance(attention_mask, BlockMask):
        return eager_of(module)(module, query, key, value, attention_mask, scaling=scaling, **others)
    sinks = others.get("s_aux")
    out = block_attention(query, key, value, mask=attention_mask, scaling=scaling, sinks=sinks)
    return out.transpose(1, 2).contiguous(), None


def eager_of(module: torch.nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The eager attention of the family that a module of transformers belongs to."""
    return getattr(sys.modules[type(module).__module__], EAGER)


def _mask(always: bool) -> Callable[..., Any]:
    """What transformers' mask builders call: who sees whom, in a form that :func:`attention_forward` takes."""

    def build(
        batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **settings: Any
    ) -> Tensor | BlockMask:
        from transformers import masking_utils

        window: int | None = settings.get("local_size")
        by_blocks = q_length > 1 if always else is_long(q_length, getattr(settings["config"], "sliding_window", None))
        sizes = (batch_size, q_length, kv_length, q_offset, kv_offset)
        visible, device = settings["mask_function"], torch.device(settings["device"])
        if not by_blocks or settings.get("use_vmap") or _sees_ahead(visible, *sizes, device=device):
            return masking_utils.eager_mask(*sizes, **settings)
        padding = masking_utils.prepare_padding_mask(settings.get("attention_mask"), kv_length, kv_offset)
        if padding is not None and not bool(padding.all()):
            visible = masking_utils.and_masks(visible, masking_utils.padding_mask_function(padding))
        return BlockMask(visible, *sizes[:3], int(q_offset), int(kv_offset), window, device)  # not per token

    return build


def _sees_ahead(
    visible: Callable[..., Tensor],
    batch: int,
    queries: int,
    keys: int,
    start: int,
    offset: int,
    *,
    device: torch.device,
) -> bool:
    """Whether any query sees the key after its own, as tokens of one image do: blocks would miss it."""
    last = min(int(start) + queries, keys + int(offset) - 1)
    query = torch.arange(int(start), last, device=device)[None, None, :]
    rows = torch.arange(batch, device=device)[:, None, None]
    return bool(visible(rows, torch.zeros_like(rows[:1]), query, query + 1).any())


def register() -> None:
    """Make both known to transformers, once in a process; loading a model does."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if BANDED in AttentionInterface():
        return
    for name in (BANDED, LONG):
        AttentionInterface.register(name, attention_forward)
        AttentionMaskInterface.register(name, _mask(always=name == BANDED))


def set_attention(model: PreTrainedModel, implementation: AttnImplementation, *, named: str) -> None:
    """Choose how a model computes attention, from its next forward on.

    ``auto`` is what transformers chose, but for a family whose sliding layers it computes eagerly: there
    :func:`is_long` says, for each forward, whether it goes by blocks. Shorter ones are transformers' own, bit for bit.

    Args:
        implementation: ``auto``; ``banded``: by blocks, every forward of several tokens; ``eager`` and ``sdpa``: as
            transformers has them.
        named: the model, as messages call it.

    Raises:
        UserError: the model's family has no such attention.
    """
    register()
    obstacle = against_blocks(model)
    if implementation == "auto":
        config: Any = model.config
        if obstacle is None and config._attn_implementation == "eager" and slides(config.get_text_config()):
            model.set_attn_implementation(LONG)
        return
    if implementation == "banded" and obstacle is not None:
        raise UserError(f"{named} cannot be computed by blocks (`attn_implementation: banded`): {obstacle}; take auto")
    try:
        model.set_attn_implementation(BANDED if implementation == "banded" else implementation)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{named}: transformers has no {implementation} attention (`attn_implementation`) for "
            f"{model.config.model_type}; take auto"
        ) from error


def by_blocks(config: Any, implementation: AttnImplementation, tokens: float) -> bool:
    """Whether a forward of so many tokens keeps no map of all pairs, as far as a configuration tells."""
    text = config.get_text_config()
    return implementation == "banded" or (
        implementation == "auto" and slides(text) and is_long(int(tokens), text.sliding_window)
    )


def slides(config: Any) -> bool:
    """Whether any layer of a configuration sees a window of tokens only."""
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or "sliding_attention" in kinds


def against_blocks(model: PreTrainedModel) -> str | None:
    """Why a model's attention cannot be computed by blocks; None: it can."""
    config: Any = model.config.get_text_config()
    if not model._can_set_attn_implementation() or not hasattr(sys.modules[type(model).__module__], EAGER):
        return f"{config.model_type} does not let its attention be chosen"
    if getattr(config, "attention_dropout", 0):
        return f"its `attention_dropout` is {config.attention_dropout:g}, which blocks do not have"
    if getattr(config, "attn_logit_softcapping", None):
        return f"its `attn_logit_softcapping` is {config.attn_logit_softcapping:g}, which blocks do not have"
    return None


@dataclass(frozen=True, slots=True)
class AttentionOffer:
    """How a model can compute attention: in words by what a recipe may write, and why not, by what it may not."""

    offered: Mapping[str, str]
    refused: Mapping[str, str]


def attention_offer(model: PreTrainedModel) -> AttentionOffer:
    """Tries every implementation on a model as transformers made it, maybe on the meta device; it stays as it is."""
    original: Any = model.config._attn_implementation
    offered: dict[str, str] = {}
    refused: dict[str, str] = {}
    for implementation in get_args(AttnImplementation):
        try:
            set_attention(model, implementation, named=model.config.model_type)
            offered[implementation] = chosen_attention(model)
        except UserError as error:
            refused[implementation] = str(error)
        model.config._attn_implementation = original
    return AttentionOffer(offered, refused)


def chosen_attention(model: PreTrainedModel) -> str:
    """In words, how a model computes attention."""
    config: Any = model.config
    name, window = config._attn_implementation, getattr(config.get_text_config(), "sliding_window", None)
    if name == BANDED:
        return "by blocks"
    if name == LONG:
        least = max(LONG_TOKENS, LONG_WINDOWS * (window or 0))
        return f"by blocks in forwards of {least} tokens and more, eager in shorter ones"
    return str(name)

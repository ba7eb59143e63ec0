"""How the rows of a batch go through a model: side by side and padded, or packed, one after another, without padding.

Packed, all layers see one sequence of S tokens, whose positions begin again with each row; attention alone is computed
row by row, rows of similar length together, by the implementation that the model has anyway. Nothing of one row reaches
another where layers mix tokens by attention alone: :func:`packing_problem` tries it.

Shape legend: B rows, T tokens of the longest one, S tokens of all, N asked tokens of a row, D width of a head.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mopd.distill.models.attention import BANDED, LONG, AttnImplementation, eager_of, register, set_attention
from mopd.distill.types import aligned_rows

SIMILAR, SHORT = 0.85, 48
"""Rows attend together down to this part of the longest one's tokens; those of so few tokens all do: measured at 0.3 M,
where more groups of short rows cost more than what they save."""
TOLERANCE = 1e-5
"""By which packed and padded float32 results may differ, as a part of the largest."""
TRIED = (23, 14, 13, 3)
"""Tokens of the rows that a model is tried with."""


class ModelRows(Protocol):
    """How the rows of one batch are given to a model, and how to read what comes out."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with; ``attention_mask`` is 0 at padding alone."""
        ...

    def aligned(self, values: Tensor, places_BN: Tensor) -> Tensor:
        """:func:`distill.types.aligned_rows` of what a model gives for each token of ``inputs``: ``(B, N, ...)``."""
        ...

    def padded(self, values: Tensor) -> Tensor:
        """What a model gives for each token of ``inputs`` as ``(B, T, ...)``; anything at padding."""
        ...

    def attending(self) -> AbstractContextManager[None]:
        """A block in which the model is called with ``inputs``."""
        ...


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Rows side by side, padded on the right. Satisfies :class:`ModelRows`."""

    token_ids_BT: Tensor
    attention_mask_BT: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Token ids and mask."""
        return {"input_ids": self.token_ids_BT, "attention_mask": self.attention_mask_BT}

    def aligned(self, values: Tensor, places_BN: Tensor) -> Tensor:
        """The rows before those places."""
        return aligned_rows(values, places_BN)

    def padded(self, values: Tensor) -> Tensor:
        """The same."""
        return values

    def attending(self) -> AbstractContextManager[None]:
        """Nothing has to be arranged."""
        return nullcontext()


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Rows that attend together, side by side.

    Attributes:
        rows, width: how many, and the tokens of the longest.
        first, tokens: where in S they begin, and how many tokens they have.
        places: int64 ``(rows * width,)``, which of the tokens is where, anything at padding; None: there is no padding.
        back: int64 ``(tokens,)``, where in these ``rows * width`` each token is; None: there is no padding.
        padding: bool ``(rows * width,)``; None: there is none.
    """

    rows: int
    width: int
    first: int
    tokens: int
    places: Tensor | None
    back: Tensor | None
    padding: Tensor | None

    def side_by_side(self, values: Tensor) -> Tensor:
        """From ``(1, heads, S, D)`` to ``(rows, heads, width, D)``. A query sees no padding, which lies behind it."""
        tokens = values[0].transpose(0, 1).narrow(0, self.first, self.tokens)
        laid: Any = tokens if self.places is None else _SideBySide.apply(tokens, self)
        return laid.unflatten(0, (self.rows, self.width)).transpose(1, 2)

    def one_after_another(self, values: Tensor) -> Tensor:
        """From ``(rows, width, heads, D)`` to ``(tokens, heads, D)``."""
        flat: Any = values.flatten(0, 1)
        return flat if self.back is None else _OneAfterAnother.apply(flat, self)


class _SideBySide(torch.autograd.Function):
    """Tokens of a group to its rows. Every token comes once, so the gradient is read back where it was written; what
    torch does of an index, adding each row into zeros, took a CPU longer than the padding that is saved."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, group: AttentionGroup) -> Tensor:
        ctx.group = group
        return tokens.index_select(0, group.places)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0].index_select(0, ctx.group.back), None


class _OneAfterAnother(torch.autograd.Function):
    """Rows of a group to its tokens."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: AttentionGroup) -> Tensor:
        ctx.group = group
        return rows.index_select(0, group.back)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        group: AttentionGroup = ctx.group
        laid = gradients[0].index_select(0, group.places)  # pyright: ignore[reportArgumentType]
        return laid.masked_fill_(group.padding.view(-1, 1, 1), 0.0), None  # pyright: ignore[reportOptionalMemberAccess]


@dataclass(frozen=True, slots=True)
class PackedMask:
    """What an attention layer is given in the place of a mask: one for each group, the same for all of its rows."""

    groups: tuple[tuple[AttentionGroup, Any], ...]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows one after another, the longest first. Satisfies :class:`ModelRows`.

    Attributes:
        inputs: token ids, positions and a mask of ones, ``(1, S)``.
        order_BT: int64, where in S each token is; 0 at padding.
        groups: in the order of S.
    """

    inputs: dict[str, Tensor]
    order_BT: Tensor
    groups: tuple[AttentionGroup, ...]

    @classmethod
    def of(cls, token_ids_BT: Tensor, attention_mask_BT: Tensor) -> PackedRows:
        """Pack rows that are padded on the right."""
        device, (B, T) = token_ids_BT.device, token_ids_BT.shape
        lengths = attention_mask_BT.sum(1).tolist()
        by_length = sorted(range(B), key=lambda b: (-lengths[b], b))
        place_T = torch.arange(T, device=device)
        positions_S = torch.cat([place_T.narrow(0, 0, lengths[b]) for b in by_length])
        row_S = torch.tensor(by_length, device=device).repeat_interleave(
            torch.tensor([lengths[b] for b in by_length], device=device)
        )
        order_BT = torch.zeros(B, T, dtype=torch.int64, device=device)
        order_BT[row_S, positions_S] = torch.arange(len(positions_S), device=device)
        inputs = {
            "input_ids": token_ids_BT[row_S, positions_S].unsqueeze(0),
            "position_ids": positions_S.unsqueeze(0),
            "attention_mask": torch.ones(1, len(positions_S), dtype=torch.int64, device=device),
        }
        return cls(inputs, order_BT, _groups([lengths[b] for b in by_length], device))

    def aligned(self, values: Tensor, places_BN: Tensor) -> Tensor:
        """The rows before those places."""
        before_BN = (self.order_BT.gather(1, places_BN) - 1).clamp(min=0)
        return values[0].index_select(0, before_BN.flatten()).unflatten(0, places_BN.shape)

    def padded(self, values: Tensor) -> Tensor:
        """Side by side; at padding the first token's."""
        return values[0].index_select(0, self.order_BT.flatten()).unflatten(0, self.order_BT.shape)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Masks that are made in the block are of these rows."""
        allow_packing()
        token = _PACKED.set(self)
        try:
            yield
        finally:
            _PACKED.reset(token)


def rows_of(token_ids_BT: Tensor, attention_mask_BT: Tensor, *, packing: bool) -> ModelRows:
    """How rows that are padded on the right go through a model."""
    make = PackedRows.of if packing else PaddedRows
    return make(token_ids_BT, attention_mask_BT)


def forward_rows(lengths: Sequence[int], tokens: int, *, packing: bool) -> int:
    """How many of some rows, the longest first, go through a forward of so many tokens; one at least.

    Args:
        packing: padding is not counted.
    """
    if not packing:
        return max(1, tokens // lengths[0])
    fits = sum(total <= tokens for total in itertools.accumulate(lengths))
    return max(1, fits)


def _groups(lengths: Sequence[int], device: torch.device) -> tuple[AttentionGroup, ...]:
    """Groups of rows one after another, of which the longest is the first."""
    groups: list[AttentionGroup] = []
    row = first = 0
    while row < len(lengths):
        width = lengths[row]
        own = [n for n in lengths[row:] if n >= SIMILAR * width or width <= SHORT]  # not per token
        tokens = sum(own)
        places = back = padding = None
        if tokens < len(own) * width:
            count = torch.tensor(own, device=device).unsqueeze(1)
            begin = count.cumsum(0) - count
            column = torch.arange(width, device=device).unsqueeze(0)
            places = torch.where(column < count, begin + column, begin).flatten()
            padding = (column >= count).flatten()
            back = padding.logical_not().nonzero().squeeze(1)
        groups.append(AttentionGroup(len(own), width, first, tokens, places, back, padding))
        row, first = row + len(own), first + tokens
    return tuple(groups)


# ---- what transformers calls


_PACKED: ContextVar[PackedRows | None] = ContextVar("packed", default=None)
"""The rows with which a model is being called."""
_ALLOWED: set[str] = set()
"""Implementations of attention that take packed rows in this process."""


def allow_packing() -> None:
    """Have every implementation of attention take packed rows; others go through it as before, bit for bit."""
    from transformers import AttentionInterface, AttentionMaskInterface

    register()
    attention, masks = AttentionInterface(), AttentionMaskInterface()
    for name in {"eager", "sdpa", BANDED, LONG} - _ALLOWED:
        own = attention.get(name)  # transformers has none for eager: each family has its own
        AttentionInterface.register(name, _by_groups(own))
        AttentionMaskInterface.register(name, _masks_of_groups(masks[name]))
        _ALLOWED.add(name)


def _by_groups(own: Callable[..., Any] | None) -> Callable[..., Any]:
    """An implementation of attention that takes packed rows, too."""

    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        attend = own or eager_of(module)
        if not isinstance(attention_mask, PackedMask):
            if _PACKED.get() is not None:
                raise ValueError("an attention layer has no mask of packed rows")
            return attend(module, query, key, value, attention_mask, *args, **others)
        parts: list[Tensor] = []
        for group, mask in attention_mask.groups:
            rows = (group.side_by_side(values) for values in (query, key, value))
            parts.append(group.one_after_another(attend(module, *rows, mask, *args, **others)[0]))
        return torch.cat(parts).unsqueeze(0), None

    return forward


def _masks_of_groups(own: Callable[..., Any]) -> Callable[..., Any]:
    """A builder of masks that makes those of packed rows, too."""

    def build(batch_size: int, q_length: int, kv_length: int, *args: Any, **settings: Any) -> Any:
        packed = _PACKED.get()
        if packed is None:
            return own(batch_size, q_length, kv_length, *args, **settings)
        if settings.get("use_vmap"):
            raise ValueError("a mask of the family's own says who sees whom")
        # All rows of a group have the same: what is padded lies behind every token, which sees nothing behind itself.
        settings |= {"attention_mask": None, "q_offset": 0, "kv_offset": 0}
        return PackedMask(tuple((group, own(1, group.width, group.width, **settings)) for group in packed.groups))

    return build


# ---- whether a family can be packed


def packing_problem(
    config: Any, *, attention: AttnImplementation = "auto", trust_remote_code: bool = False
) -> str | None:
    """Why the rows of a configuration's models cannot be packed, as a predicate; None: they can.

    A model is made of it and tried in float32 on the CPU: logits and gradients of rows of :data:`TRIED` tokens, padded
    and packed.

    Args:
        attention: how it is computed, which the model's family has.
        trust_remote_code: whether Python code that lies in the model's folder may run.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings: Any = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **settings).eval()
        set_attention(model, attention, named=config.model_type)
        text = config.get_text_config()
        context = getattr(text, "max_position_embeddings", None) or max(TRIED)
        lengths = [min(length, context) for length in TRIED]
        ids_BT = torch.randint(text.vocab_size, (len(lengths), max(lengths)))
        weights_BT = torch.rand(ids_BT.shape)
    return differs_packed(model, ids_BT, lengths=lengths, weights_BT=weights_BT)


def differs_packed(model: Any, ids_BT: Tensor, *, lengths: Sequence[int], weights_BT: Tensor) -> str | None:
    """How packed logits or gradients of a model differ from padded ones, as a predicate; None: they do not.

    Args:
        ids_BT: tokens, of which each row has so many of ``lengths``.
        weights_BT: of each token in what the gradient is taken of.
    """
    T = ids_BT.shape[1]
    mask_BT = (torch.arange(T) < torch.tensor(lengths).unsqueeze(1)).long()
    results: list[list[Tensor]] = []
    for packing in (False, True):
        rows = rows_of(ids_BT, mask_BT, packing=packing)
        model.zero_grad()
        try:
            with rows.attending():
                logits_BTV = rows.padded(model(**rows.inputs, use_cache=False).logits)
            value_BT = logits_BTV.float().square().mean(-1) + logits_BTV.float().logsumexp(-1)
            (value_BT * weights_BT * mask_BT).sum().backward()
        except Exception as error:  # whatever a family's own layers raise
            return f"cannot be given {'packed' if packing else 'padded'} rows ({type(error).__name__}: {error!s:.100})"
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        results.append([logits_BTV.detach()[mask_BT.bool()], *gradients])
    model.zero_grad()
    differences = [_difference(padded, packed) for padded, packed in zip(*results, strict=True)]
    wrong = [difference for difference in differences if not difference <= TOLERANCE]  # NaN is, too
    return f"gives other results for packed rows (they differ by {max(wrong):.0e})" if wrong else None


def _difference(expected: Tensor, got: Tensor) -> float:
    """The largest, as a part of the largest number that is expected."""
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-3))

"""The keys and values that a generation keeps: in sliding layers no more than a window's, however long it becomes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer


class WindowLayer(DynamicSlidingWindowLayer):
    """A sliding layer's keys and values in one buffer, in which new tokens overwrite what no window reaches any more.

    transformers' own layer copies a whole window for each token, and between a prompt and its next token holds all of
    the prompt. Here a prompt is let go of as soon as its layer is done, and a token is written in place. The buffer has
    a quarter of a window more than is seen, and grows up to that; when it is full, what is still seen moves to its
    front. So tokens lie in their order, as masks of padded rows need, and what is computed is the same bit for bit.
    """

    is_croppable = False

    def __init__(self, sliding_window: int, **settings: Any) -> None:
        super().__init__(sliding_window=sliding_window, **settings)
        self._reach = sliding_window - 1  # a token sees itself and so many before it
        self._slots = self._reach + max(1, sliding_window // 4)
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._start = self._end = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add new tokens' ``(B, heads, T, D)``; returns theirs and, before them, those that the first of them sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        self._grow(self._end + new, key_states, value_states)
        assert self._buffers is not None
        self.cumulative_length += new
        if self._end + new <= self._slots:
            self._write(self._end, key_states, value_states)
            seen = tuple(buffer[:, :, self._start : self._end] for buffer in self._buffers)
        else:
            held = (buffer[:, :, self._start : self._end] for buffer in self._buffers)
            seen = tuple(torch.cat(pair, dim=2) for pair in zip(held, (key_states, value_states), strict=True))
            kept = min(self._reach, seen[0].shape[2])
            self._start = self._end = 0
            self._write(0, *(tensor[:, :, tensor.shape[2] - kept :] for tensor in seen))
        self._start = max(self._start, self._end - self._reach)
        self._show()
        return seen[0], seen[1]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep these rows, in this order."""
        if self._buffers is not None:
            self._buffers = tuple(  # pyright: ignore[reportAttributeAccessIssue]
                buffer.index_select(0, beam_idx.to(buffer.device)) for buffer in self._buffers
            )
            self._show()

    def _grow(self, needed: int, *like: Tensor) -> None:
        """Room for so many tokens, as far as a buffer goes: at least twice what there was, so that copies are few."""
        there = 0 if self._buffers is None else self._buffers[0].shape[2]
        if there >= min(needed, self._slots):
            return
        slots = min(self._slots, max(needed, 2 * there))
        larger = tuple(tensor.new_empty(*tensor.shape[:2], slots, tensor.shape[3]) for tensor in like)
        if self._buffers is not None:
            for buffer, held in zip(larger, self._buffers, strict=True):
                buffer[:, :, : self._end] = held[:, :, : self._end]
        self._buffers = larger[0], larger[1]

    def _write(self, at: int, *tensors: Tensor) -> None:
        assert self._buffers is not None
        self._end = at + tensors[0].shape[2]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer[:, :, at : self._end] = tensor

    def _show(self) -> None:
        """What transformers reads of a layer."""
        assert self._buffers is not None
        self.keys, self.values = (buffer[:, :, self._start : self._end] for buffer in self._buffers)


def window_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration, whose sliding layers are :class:`WindowLayer`."""
    cache = DynamicCache(config=config)
    cache.layers = [
        WindowLayer(layer.sliding_window) if type(layer) is DynamicSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def held_bytes(cache: DynamicCache) -> int:
    """Bytes of all memory that a cache keeps from being used otherwise."""
    layers: list[Any] = list(cache.layers)
    held = [tensor.untyped_storage() for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())

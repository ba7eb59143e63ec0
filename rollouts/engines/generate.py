"""Writes completions with a causal language model, one keyed random number per token.

A rollout's randomness is a pure function of (seed, step, rollout, position): it does not depend on the batch that it is
written in, on the rank that writes it, or on what was drawn before. So a resumed run draws the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn
from transformers import Cache

from mopd.distill.models.heads import without_adapters
from mopd.distill.models.load import eval_mode
from mopd.distill.payloads import likeliest
from mopd.distill.types import DraftCounts, Finish, Float32, Int32
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.cache import window_cache
from mopd.rollouts.engines.drafts import Speculation, can_draft, pays


@dataclass(frozen=True, slots=True)
class Completion:
    """What was written after one prompt: ``token_ids`` and their natural log-probabilities, both ``(N,)``.

    ``support_ids`` are the likeliest tokens at each position, ``(N, K)``, where they were asked for; ``drafts`` says
    what guesses did, where there were any.
    """

    token_ids: Int32
    logprobs: Float32
    finish: Finish
    support_ids: Int32 | None = None
    drafts: DraftCounts | None = None


def keyed_uniforms(*, seed: int, step: int, rollout: int, n: int) -> np.ndarray:
    """``n`` uniform numbers in [0, 1) for positions 0..n-1 of one rollout, a pure function of the key (Philox)."""
    key = np.array([seed, (step << 32) | rollout], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(n)


@torch.no_grad()
def generate(
    model: nn.Module, prompts: Sequence[Sequence[int]], rollouts: Sequence[int], decoding: Decoding
) -> list[Completion]:
    """Write one completion per prompt.

    Args:
        model: a transformers causal language model; put into eval mode for the call.
        prompts: token ids of each prompt, at least one each. Empty only in lockstep, where this rank merely keeps pace.
        rollouts: number of each rollout within the step; keys its randomness.
        decoding: how tokens are chosen.

    Returns:
        One completion per prompt, in order.
    """
    with eval_mode(model):
        return _Batch(model, prompts, rollouts, decoding).run()


RECURRENT = "cache_params"
"""What purely recurrent models call their cache. A token that follows a prompt sees its state, and needs no mask."""


def _cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its cache: purely recurrent ones (mamba) have a name of their own."""
    arguments = inspect.signature(without_adapters(model).forward).parameters
    return RECURRENT if RECURRENT in arguments and "past_key_values" not in arguments else "past_key_values"


def likely_part(logprobs_BV: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Log-probabilities with those of tokens that `top_k` and `top_p` leave out at minus infinity; not normalised.

    Of tokens as likely as the last that is kept all are kept by `top_k`; `top_p` keeps the fewest of the likeliest that
    have the probability together, after `top_k` and normalised to it.

    Source: Holtzman et al., arXiv 1904.09751, section 3.1 (top-p); Fan et al., arXiv 1805.04833 (top-k).
    """
    if decoding.top_k is not None and decoding.top_k < logprobs_BV.shape[-1]:
        least_B1 = logprobs_BV.topk(decoding.top_k, dim=-1).values[:, -1:]  # not per token
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < least_B1, -torch.inf)
    if decoding.top_p is not None:
        sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
        likely_BV = sorted_BV.softmax(-1)
        beyond_BV = likely_BV.cumsum(-1) - likely_BV >= decoding.top_p
        beyond_BV[:, 0] = False
        logprobs_BV = logprobs_BV.masked_fill(beyond_BV.gather(1, order_BV.argsort(-1)), -torch.inf)
    return logprobs_BV


COMPACT_FROM = 0.25
"""The part of a batch's rows that has ended when they are taken out. That copies all keys and values, so it is not done
for every row; until then an ended row takes part in forwards, and nobody reads what comes of it."""


class _Batch:
    """One batch under way: left-padded prompts, a key-value cache, and the rows that are held in it.

    Equal prompts (samples of one) are read once, and their rows of the cache are copied.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], rollouts: Sequence[int], decoding: Decoding
    ) -> None:
        self.model = model
        self.decoding = decoding
        self.n = len(prompts)
        self.device = next(model.parameters()).device
        # A rank without prompts of its own still takes part in the others' forwards, on a row that nobody reads.
        rows = [tuple(p) for p in prompts] or [(decoding.pad_token_id,)]
        distinct = list(dict.fromkeys(rows))
        width = max(len(row) for row in rows)
        ids = torch.full((len(distinct), width), decoding.pad_token_id)
        # What a row sees: its prompt, not its padding, and all that is written.
        mask = torch.ones((len(distinct), width + decoding.max_new_tokens), dtype=torch.long)
        for b, row in enumerate(distinct):
            ids[b, width - len(row) :] = torch.tensor(row)
            mask[b, : width - len(row)] = 0
        self.prompts = rows
        self.ids = ids.to(self.device)
        self.mask = mask.to(self.device)
        self.width = width
        places = {row: place for place, row in enumerate(distinct)}
        self.copies = None if len(distinct) == len(rows) else torch.tensor([places[row] for row in rows])
        """Which prompt that is read each row begins with; None: row by row its own."""
        self.uniforms = np.stack(
            [keyed_uniforms(seed=decoding.seed, step=decoding.step, rollout=r, n=decoding.max_new_tokens)
             for r in rollouts] or [np.zeros(decoding.max_new_tokens)]
        )  # fmt: skip
        self.tokens = np.zeros((len(rows), decoding.max_new_tokens), dtype=np.int32)
        self.logprobs = np.zeros((len(rows), decoding.max_new_tokens), dtype=np.float32)
        self.support: Int32 | None = None  # its width is known with the first logits
        self.lengths = np.zeros(len(rows), dtype=np.int64)
        self.ends = np.array(decoding.end_token_ids)
        self.stopped = np.zeros(len(rows), dtype=bool)  # by a stop string
        self.live = np.arange(len(rows))
        self.drafts: dict[int, DraftCounts] = {}
        """By row, where it was written with guesses."""

    def run(self) -> list[Completion]:
        config: Any = self.model.config
        cache = window_cache(config)
        argument = _cache_argument(self.model)
        held: dict[str, Any] = {argument: cache}
        inputs, positions = self.ids, (self.mask[:, : self.width].cumsum(1) - 1).clamp(min=0)
        done = np.zeros(self.n or 1, dtype=bool)
        done[self.n :] = True
        mask_free = argument == RECURRENT
        guesses = self.decoding.drafts if can_draft(self.model, self.decoding) else None
        for t in range(self.decoding.max_new_tokens):
            unfinished = int((~done[self.live]).sum())
            room = self.decoding.max_new_tokens - t
            if guesses is not None and unfinished and pays(guesses, unfinished, written=t, room=room):
                self._write_on(done)
                break
            mask = None if t > 0 and mask_free else self.mask[:, : self.width + t]
            logits_BV = self.model(
                input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **held
            ).logits[:, -1, : self.decoding.vocabulary]  # fmt: skip
            positions = positions[:, -1:]  # not per token: the place of the last one
            if t == 0 and self.copies is not None:
                index = self.copies.to(self.device)
                logits_BV, positions = logits_BV[index], positions[index]
                self._hold(cache, index)
            logprobs_BV = torch.log_softmax(logits_BV.float() / self.decoding.temperature, dim=-1)
            token_B = self._choose(logprobs_BV, t)
            self._note(logprobs_BV, token_B, t, done)
            if not self._anyone(bool((~done).any())) or t + 1 == self.decoding.max_new_tokens:
                break
            keep = np.flatnonzero(~done[self.live])
            if len(keep) == 0:
                keep = np.array([0])  # finished, but other ranks still need this one's forwards
            if len(keep) <= (1 - COMPACT_FROM) * len(self.live):
                index = torch.from_numpy(keep).to(self.device)
                positions, token_B, self.live = positions[index], token_B[index], self.live[keep]
                self._hold(cache, index)
            inputs, positions = token_B.unsqueeze(1), positions + 1
        return [self._completion(row, done[row]) for row in range(self.n)]

    def _hold(self, cache: Cache, index: Any) -> None:
        """Go on with these rows of what is held, in this order."""
        for layer in cache.layers:
            layer.reorder_cache(index)  # which layers with a recurrent state have, too
        self.mask = self.mask[index]

    def _note(self, logprobs_BV: torch.Tensor, token_B: torch.Tensor, t: int, done: np.ndarray) -> None:
        """Write down what was chosen for the rows that had not ended, and which of them end with it.

        All of it comes from the device in one piece: each transfer waits for all that was computed.
        """
        columns = [token_B.unsqueeze(1), logprobs_BV.gather(1, token_B.unsqueeze(1))]
        if self.decoding.support is not None:
            columns.append(likeliest(logprobs_BV, self.decoding.support))
        # Token ids and float32 numbers are whole in float64.
        unfinished = ~done[self.live]
        chosen = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()[unfinished]
        rows = self.live[unfinished]
        self.tokens[rows, t] = chosen[:, 0]
        self.logprobs[rows, t] = chosen[:, 1]
        if self.decoding.support is not None:
            self._note_support(chosen[:, 2:].astype(np.int32), rows, t)  # not per token
        self.lengths[rows] = t + 1
        done[rows] = (self.tokens[rows, t, None] == self.ends).any(1)
        if self.decoding.stops is not None:
            self._note_stops(rows, t)
            done |= self.stopped

    def _write_on(self, done: np.ndarray) -> None:
        """Write the rest of the rows that have not ended with guesses; what is written is the same."""
        rows = self.live[~done[self.live]]
        known = [[*self.prompts[row], *self.tokens[row, : self.lengths[row]].tolist()] for row in rows]
        room = self.decoding.max_new_tokens - self.lengths[rows]
        uniforms = np.zeros((len(rows), int(room.max())))
        for i, row in enumerate(rows):
            uniforms[i, : room[i]] = self.uniforms[row, self.lengths[row] :]  # not per token: the positions to come
        speculation = Speculation(self.model, known, room.tolist(), uniforms, self.decoding, self._pick)
        while len(speculation.rows):
            writing = rows[speculation.rows]
            tokens, counts, logprobs_BKV, ended = speculation.round(speculation.guesses())
            index = torch.from_numpy(tokens).to(logprobs_BKV.device).unsqueeze(-1)
            logprobs = logprobs_BKV.gather(2, index).squeeze(-1).cpu().numpy()
            support = self.decoding.support
            likely = None if support is None else likeliest(logprobs_BKV, support).cpu().numpy()
            for i, row in enumerate(writing):
                at, n = int(self.lengths[row]), int(counts[i])
                self.tokens[row, at : at + n] = tokens[i, :n]
                self.logprobs[row, at : at + n] = logprobs[i, :n]
                if likely is not None:
                    for j in range(n):
                        self._note_support(likely[[i], j], np.array([row]), at + j)
                self.lengths[row] = at + n
                done[row] = bool(np.isin(tokens[i, n - 1], self.decoding.end_token_ids))
            speculation.drop(ended)
        self.drafts = {int(row): speculation.counts(i) for i, row in enumerate(rows)}

    def _choose(self, logprobs_BV: torch.Tensor, t: int) -> torch.Tensor:
        """A token of each row."""
        return self._pick(likely_part(logprobs_BV, self.decoding), self.uniforms[self.live, t])

    def _pick(self, logprobs: torch.Tensor, uniforms: np.ndarray) -> torch.Tensor:
        """A token a distribution: the mode, or the inverse distribution function at a uniform number."""
        return pick_tokens(logprobs, uniforms, greedy=self.decoding.greedy)

    def _note_support(self, ids_BK: np.ndarray, rows: np.ndarray, t: int) -> None:
        if self.support is None:
            self.support = np.zeros((*self.tokens.shape, ids_BK.shape[1]), dtype=np.int32)
        self.support[rows, t] = ids_BK

    def _note_stops(self, rows: np.ndarray, t: int) -> None:
        """Which of the rows end in a stop string, of those that no end token ends."""
        assert self.decoding.stops is not None
        if len(rows):
            written = torch.from_numpy(self.tokens[rows, : t + 1]).long()
            ended = np.isin(self.tokens[rows, t], self.decoding.end_token_ids)
            self.stopped[rows] = self.decoding.stops(written, None).numpy() & ~ended

    def _anyone(self, unfinished: bool) -> bool:
        """Whether any rank still has a row to write; every rank asks equally often."""
        if not self.decoding.lockstep:
            return unfinished
        flag = torch.tensor([int(unfinished)], device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _completion(self, row: int, ended: bool) -> Completion:
        n = int(self.lengths[row])
        support = None if self.support is None else self.support[row, :n].copy()
        finish: Finish = "stop" if self.stopped[row] else "eos" if ended else "length"
        return Completion(
            self.tokens[row, :n].copy(), self.logprobs[row, :n].copy(), finish, support, self.drafts.get(row)
        )


def pick_tokens(logprobs: torch.Tensor, uniforms: np.ndarray, *, greedy: bool) -> torch.Tensor:
    """A token a distribution: the mode, or the inverse distribution function at a uniform number.

    Args:
        logprobs: ``(..., V)``.
        uniforms: ``(...)``, in [0, 1).
    """
    if greedy:
        return logprobs.argmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    uniform = torch.from_numpy(uniforms).to(logprobs.device)
    # Scaled by the total, which rounding leaves a hair off 1, so that no draw falls beyond the last token.
    target = (uniform * cumulative[..., -1]).unsqueeze(-1)
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=logprobs.shape[-1] - 1)

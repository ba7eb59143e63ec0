"""Writes the rest of a batch with draft heads: tokens are guessed, and one forward of the model checks them all.

What is written is what :func:`rollouts.engines.generate.generate` writes without guesses. A position's token is the one
that its own keyed random number picks from the model's distribution, whatever was guessed; a guess that equals it has
been fed to the model already, so the next token is known as well. Guesses cost time when wrong, and change nothing.

Source: speculative decoding, Leviathan et al., arXiv 2211.17192; drafts and model that share their random numbers:
Daliri et al., arXiv 2408.07978.

Shape legend: B rows, T tokens, K guesses of a round, V vocabulary, H hidden size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mopd.distill.models.heads import plain_head, without_adapters
from mopd.distill.models.load import eval_mode
from mopd.distill.models.mtp import draft_heads
from mopd.distill.storage import write_atomic
from mopd.distill.types import DraftCounts
from mopd.rollouts.engines.base import Decoding, DraftCosts, Drafts

PRIOR_ACCEPTANCE, PRIOR_WEIGHT = 0.8, 16.0
"""What a batch takes its guesses' acceptance for, and for how many guesses that counts, before it has made any."""
MEASURED_ROWS = (1, 4, 16, 64, 256)
MEASURED_PROMPT, MEASURED_TOKENS, MEASURED_TIMES = 16, 6, 5
NOTHING_ENDS = (-1,)

Choose = Callable[[Tensor, np.ndarray], Tensor]
"""From log-probabilities ``(..., V)`` and uniform numbers ``(...)`` to tokens."""


class SlotCache:
    """Keys and values at the slot of their token's position.

    A row that goes on overwrites what it did not keep, so rows advance by different numbers of tokens and nothing is
    copied.
    """

    is_compileable = False

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.positions_BT: Tensor | None = None
        self.seen = 0

    def at(self, positions_BT: Tensor, seen: int) -> SlotCache:
        """Where the next keys go, and how many slots are looked at."""
        self.positions_BT, self.seen = positions_BT, seen
        return self

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Note the keys and values of new tokens; returns all that may be looked at."""
        if layer_idx not in self._layers:
            self._layers[layer_idx] = tuple(  # pyright: ignore[reportArgumentType]
                new.new_zeros(new.shape[0], new.shape[1], self._slots, new.shape[3]) for new in (keys, values)
            )
        assert self.positions_BT is not None
        place = self.positions_BT[:, None, :, None]
        for buffer, new in zip(self._layers[layer_idx], (keys, values), strict=True):
            buffer.scatter_(2, place.expand(-1, new.shape[1], -1, new.shape[3]), new)
        kept_keys, kept_values = self._layers[layer_idx]
        return kept_keys[:, :, : self.seen], kept_values[:, :, : self.seen]

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._layers = {layer: (k[rows], v[rows]) for layer, (k, v) in self._layers.items()}

    def get_seq_length(self, *_: Any) -> int:
        """Of transformers' interface: positions are given with every call."""
        return 0


class Speculation:
    """Rows that are written on with guesses.

    Args:
        model: with draft heads attached.
        known: each row's tokens so far, at least one.
        room: tokens that each row may still get, at least one.
        uniforms: ``(rows, >= room)``: the random number of each further position.
    """

    def __init__(
        self,
        model: nn.Module,
        known: Sequence[Sequence[int]],
        room: Sequence[int],
        uniforms: np.ndarray,
        decoding: Decoding,
        choose: Choose,
    ) -> None:
        heads = draft_heads(model)
        assert heads is not None
        assert decoding.drafts is not None
        self.model, self.heads, self._decoding, self._choose = model, heads, decoding, choose
        self._drafts = decoding.drafts
        parameter = next(model.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype
        config: Any = without_adapters(model).config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        self._kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
        self.n = np.array([len(row) for row in known])
        self._start, self._limit = self.n.copy(), self.n + np.array(room)
        slots = int(self._limit.max()) + self._drafts.limit + 1
        ids = np.zeros((len(known), slots), dtype=np.int64)
        for row, tokens in enumerate(known):
            ids[row, : len(tokens)] = tokens
        self._ids = torch.from_numpy(ids).to(self.device)
        self._uniforms = uniforms
        self.rows = np.arange(len(known))
        self._trunk_cache, self._head_cache = SlotCache(slots), SlotCache(slots)
        self._hidden = torch.zeros(len(known), slots, config.hidden_size, dtype=self._dtype, device=self.device)
        self._heads_are_at: np.ndarray | None = None  # tokens that each row had when the heads last looked
        self.offered, self.accepted = (np.zeros((len(known), self._drafts.limit), dtype=np.int64) for _ in range(2))
        self.forwards, self.tokens = (np.zeros(len(known), dtype=np.int64) for _ in range(2))
        if int(self.n.max()) > 1:
            positions = torch.arange(int(self.n.max()) - 1, device=self.device).expand(len(known), -1)
            # What shorter rows have after their last token is masked, and overwritten when they get there.
            self._forward(self._ids[:, : positions.shape[1]], positions, logits_to_keep=1)

    def guesses(self) -> int:
        """How many tokens to guess in the next round."""
        if self._drafts.costs is None:
            return self._drafts.limit
        offered, accepted = self.offered.sum(0), self.accepted.sum(0)
        rates = (PRIOR_ACCEPTANCE * PRIOR_WEIGHT + accepted) / (PRIOR_WEIGHT + offered)
        return self._drafts.costs.best(len(self.rows), rates.tolist(), margin=1.0)  # they are begun already

    def round(self, k: int) -> tuple[np.ndarray, np.ndarray, Tensor, np.ndarray]:
        """Guess ``k`` tokens of every row that goes on, check them, and take what is right and one more.

        Returns:
            The tokens ``(B, k + 1)``, how many of them each row gets, log-probabilities ``(B, k + 1, V)``, and which
            rows end with it.
        """
        live = self.rows
        n_B = torch.from_numpy(self.n[live]).to(self.device)
        written = self.n[live] - self._start[live]
        places = np.minimum(written[:, None] + np.arange(k + 1), self._uniforms.shape[1] - 1)
        uniforms = self._uniforms[live[:, None], places]
        guesses = self._guess(k, n_B, uniforms) if k else []
        last = self._ids.gather(1, n_B[:, None] - 1)
        fed = torch.cat([last, *(guess[:, None] for guess in guesses)], dim=1)
        positions = n_B[:, None] - 1 + torch.arange(k + 1, device=self.device)
        logprobs = self._forward(fed, positions)
        tokens = self._choose(logprobs, uniforms)
        right = self._right(tokens[:, :k], fed[:, 1:]).cpu().numpy()  # not per token: position j of a round
        self._ids.scatter_(1, positions + 1, tokens)
        drawn = tokens.cpu().numpy()
        taken = np.cumprod(right, axis=1).sum(1) if k else np.zeros(len(live), dtype=np.int64)
        ends = np.isin(drawn, self._decoding.end_token_ids)
        first_end = np.where(ends.any(1), ends.argmax(1), k + 1)
        count = np.minimum(np.minimum(taken, first_end) + 1, self._limit[live] - self.n[live])
        for j in range(k):
            reached = (taken >= j) & (count > j)
            self.offered[live, j] += reached
            self.accepted[live, j] += reached & (taken > j)
        self.forwards[live] += 1
        self.tokens[live] += count
        self.n[live] += count
        done = (first_end < count) | (self.n[live] >= self._limit[live])
        return drawn, count, logprobs, done

    def drop(self, done: np.ndarray) -> None:
        """Leave out the rows that have ended."""
        if not done.any():
            return
        kept = torch.from_numpy(np.flatnonzero(~done)).to(self.device)
        self.rows = self.rows[~done]
        self._ids, self._hidden = self._ids[kept], self._hidden[kept]
        self._trunk_cache.keep(kept)
        self._head_cache.keep(kept)
        if self._heads_are_at is not None:
            self._heads_are_at = self._heads_are_at[~done]

    def counts(self, row: int) -> DraftCounts:
        """What guesses did for a row."""
        offered, accepted = self.offered[row].tolist(), self.accepted[row].tolist()
        return DraftCounts(int(self.forwards[row]), int(self.tokens[row]), tuple(offered), tuple(accepted))

    @staticmethod
    def _right(tokens: Tensor, guesses: Tensor) -> Tensor:
        """Which guesses are what is written."""
        return tokens == guesses

    def _guess(self, k: int, n_B: Tensor, uniforms: np.ndarray) -> list[Tensor]:
        """``k`` guesses a row, each drawn with the random number that its position is written with."""
        n = self.n[self.rows]
        if self._heads_are_at is None:
            width, ends = int(n.max()) - 1, None
            positions = torch.arange(max(1, width), device=self.device).expand(len(n), -1)
        else:
            width, ends = int((n - self._heads_are_at).max()), -1
            back = torch.arange(width - 1, -1, -1, device=self.device)
            positions = (n_B[:, None] - 2 - back).clamp(min=0)
        self._heads_are_at = n.copy()
        hidden = self._hidden.gather(1, positions[:, :, None].expand(-1, -1, self._hidden.shape[-1]))
        g_BTH = self._draft(self._ids.gather(1, positions + 1), hidden, positions)
        if ends is None:
            g_BH = g_BTH[torch.arange(len(n), device=self.device), (n_B - 2).clamp(min=0)]
        else:
            g_BH = g_BTH[:, ends]  # not per token
        guesses: list[Tensor] = []
        for j in range(k):
            guesses.append(self._choose(self._logprobs(self.heads.logits(g_BH)), uniforms[:, j]))
            if j + 1 < k:
                g_BH = self._draft(guesses[-1][:, None], g_BH[:, None], (n_B - 1 + j)[:, None])[:, 0]
        return guesses

    def _draft(self, ids_BT: Tensor, hidden_BTH: Tensor, positions_BT: Tensor) -> Tensor:
        seen = min(int(self.n[self.rows].max()) + self._drafts.limit, self._ids.shape[1])
        mask = _seen(positions_BT, seen, self.heads.window, self.heads.dtype)
        cache = self._head_cache.at(positions_BT, seen)
        return self.heads.run(0, ids_BT, hidden_BTH, positions_BT, mask, cache)

    def _forward(self, ids_BT: Tensor, positions_BT: Tensor, **settings: Any) -> Tensor:
        """The model at tokens; its last hidden states are kept. Returns log-probabilities ``(B, T, V)``."""
        seen = min(int(self.n[self.rows].max()) + self._drafts.limit, self._ids.shape[1])
        masks = {
            kind: _seen(positions_BT, seen, self._window if kind == "sliding_attention" else None, self._dtype)
            for kind in self._kinds or ("full_attention",)
        }

        captured: list[Tensor] = []
        decoder: Any = without_adapters(self.model).get_decoder()
        handle = decoder.register_forward_hook(lambda _module, _inputs, output: captured.append(output[0]))
        try:
            logits = self.model(
                input_ids=ids_BT,
                attention_mask=masks if self._kinds else masks["full_attention"],
                position_ids=positions_BT,
                past_key_values=self._trunk_cache.at(positions_BT, seen),
                use_cache=True,
                **settings,
            ).logits
        finally:
            handle.remove()
        (hidden_BTH,) = captured
        place = positions_BT[:, :, None].expand(-1, -1, hidden_BTH.shape[-1])
        self._hidden.scatter_(1, place, hidden_BTH.to(self._hidden.dtype))
        return self._logprobs(logits)

    def _logprobs(self, logits: Tensor) -> Tensor:
        tempered = logits[..., : self._decoding.vocabulary].float() / self._decoding.temperature
        return torch.log_softmax(tempered, dim=-1)


def _seen(positions_BT: Tensor, slots: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores ``(B, 1, T, slots)``: 0 at slots up to a query's own, and within its window."""
    distance = positions_BT[:, :, None] - torch.arange(slots, device=positions_BT.device)
    ok = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    zero = torch.zeros((), dtype=dtype, device=positions_BT.device)
    return torch.where(ok, zero, torch.finfo(dtype).min)[:, None]


def can_draft(model: nn.Module, decoding: Decoding) -> bool:
    """Whether a batch may be written with guesses: by a model with draft heads, whose ranks need not keep pace."""
    return decoding.drafts is not None and not decoding.lockstep and draft_heads(model) is not None


def pays(drafts: Drafts, rows: int, *, written: int, room: int) -> bool:
    """Whether so many rows are to be written on with guesses, before any was made.

    Args:
        written: tokens that each row has been given; 0: none has been begun, and a prompt is read once either way.
        room: tokens that each may still get. That a row goes on as long as it has been is a fair guess.
    """
    if drafts.costs is None:
        return True
    acceptance = [PRIOR_ACCEPTANCE] * drafts.limit
    if written == 0:
        return drafts.costs.best(rows, acceptance) > 0
    return drafts.costs.takeover_pays(rows, acceptance, min(written, room))


@torch.no_grad()
def measure_costs(model: nn.Module, decoding: Decoding, write: Callable[..., Any], choose: Choose) -> DraftCosts | None:
    """Times a token without guesses and a round with each number of them, for batches of several sizes.

    Args:
        write: :func:`rollouts.engines.generate.generate`, which is timed without guesses.

    Returns:
        None of a model without draft heads.
    """
    if not can_draft(model, decoding):
        return None
    assert decoding.drafts is not None
    vocabulary = decoding.vocabulary or plain_head(model).weight.shape[0]
    rng = np.random.default_rng(0)
    forced = replace(decoding, drafts=Drafts(decoding.drafts.limit), end_token_ids=NOTHING_ENDS, support=None)
    least = partial(_least, clock=time.process_time if next(model.parameters()).device.type == "cpu" else _device_clock)
    plain, rounds, takeover = list[float](), list[tuple[float, ...]](), list[float]()
    with eval_mode(model):
        for rows in MEASURED_ROWS:
            prompts = rng.integers(0, vocabulary, (rows, MEASURED_PROMPT)).tolist()
            short, long = (replace(forced, max_new_tokens=n, drafts=None) for n in (1, 1 + MEASURED_TOKENS))
            took = [least(lambda p=prompts, d=d: write(model, p, range(len(p)), d)) for d in (short, long)]
            plain.append(max(1e-6, (took[1] - took[0]) / MEASURED_TOKENS))
            room = (MEASURED_TIMES + 2) * (decoding.drafts.limit + 1) * decoding.drafts.limit
            uniforms = rng.random((rows, room))

            def begun(rows: int = rows, room: int = room, u: Any = uniforms, p: Any = prompts) -> Speculation:
                speculation = Speculation(model, p, [room] * rows, u, forced, choose)
                speculation.round(1)  # in which the heads read the prompts
                return speculation

            by_k: list[float] = []
            for k in range(1, decoding.drafts.limit + 1):
                speculation = begun()
                by_k.append(least(lambda k=k, s=speculation: s.round(k)))
            rounds.append(tuple(by_k))
            takeover.append(max(1e-6, least(begun) - by_k[0]))
    return DraftCosts(MEASURED_ROWS, tuple(plain), tuple(rounds), tuple(takeover))


def read_costs(path: str | None) -> DraftCosts | None:
    """Times that an earlier attempt of the run measured: a resumed run guesses as the first one did."""
    if path is None or not Path(path).is_file():
        return None
    written = json.loads(Path(path).read_text())
    rounds, takeover = tuple(map(tuple, written["rounds"])), written.get("takeover")
    return DraftCosts(
        tuple(written["rows"]), tuple(written["plain"]), rounds, None if takeover is None else tuple(takeover)
    )


def write_costs(path: str | None, costs: DraftCosts) -> None:
    """Keep them for :func:`read_costs`."""
    if path is not None:
        write_atomic(path, json.dumps(asdict(costs), indent=1))


def _least(run: Callable[[], Any], *, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few runs: other work on the machine only ever adds."""
    best = float("inf")
    for _ in range(MEASURED_TIMES):
        began = clock()
        run()
        best = min(best, clock() - began)
    return best


def _device_clock() -> float:
    """Wall time, once the device has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()

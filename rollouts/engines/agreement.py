"""Does an engine in processes of its own hold the student's weights, and draw from the student's distribution?

Two questions, because right log-probabilities do not prove a sampler: a sampler can report them and draw otherwise.
After every publish the engine's log-probabilities of fixed tokens are held against those of a plain forward of the
student; before the first rollout the counts of tokens that it has drawn are held against the student's distribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import chdtrc
from torch import nn

from mopd.distill.models.load import eval_mode
from mopd.distill.types import RunError, aligned_rows

ROWS = (3, 11, 25, 60)
"""Tokens of the fixed rows; one more is longer than the window of a model that has one."""
SCORED = 24
"""Tokens of a row, at its end, that are scored; so many of the longest row follow the window."""
LONGEST = 600
"""Tokens of a row at most: a longer window is not looked beyond, because the logits would take gigabytes."""
MEAN, MOST = 0, 1
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 1.0)}
"""Nats by which two ways to one log-probability may differ on fixed rows, in the mean and at most, by the dtype of the
weights: in bfloat16 a logit of 20 is rounded by up to 0.06 on either side."""
MOVED = 0.5
"""The part of the fixed tokens that a publish must have moved in the student before an engine in which none has moved
is held not to have taken it on."""

CANDIDATES = 64
"""Short prompts of which the one is taken after which a temperature shows most."""
PROMPT_TOKENS = 3
ERROR_RATE = 1e-6
"""How often a right sampler is refused."""
EXPECTED = 10.0
"""Draws that a cell of a test has to expect."""
LATER_TOKENS = 4
"""Of the rows whose later tokens are tested: speculative decoding has no part in a first token."""
LATER_PREFIXES, LATER_ROWS = 8, 40
"""Of each length: the beginnings that most rows share, and the rows that one has to have."""
CELLS = 8
"""Of the test that asks how likely the drawn tokens are, in order of their likelihood."""


# ---- weights


def fixed_rows(config: Any, *, context: int) -> list[list[int]]:
    """Token ids of rows, the same for every version of a model.

    Args:
        config: of the model.
        context: tokens that a row may have, and one more.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) or 0
    lengths = [*ROWS, min(LONGEST, window + SCORED)] if window else [*ROWS]
    rng = np.random.default_rng(0)
    return [rng.integers(0, text.vocab_size, max(2, min(n, context - 1))).tolist() for n in lengths]


@torch.no_grad()
def row_logprobs(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The log-probabilities of the last tokens of every row, each given those before it, by a forward over the row.

    Runs in the processes that hold the model.

    Returns:
        For each row of T tokens ``(min(SCORED, T - 1),)``.
    """
    with eval_mode(model):
        return [_of_row(model, row) for row in rows]


def _of_row(model: nn.Module, row: Sequence[int]) -> np.ndarray:
    ids_1T = torch.tensor([[*row]], device=next(model.parameters()).device)
    logits_1TV = model(input_ids=ids_1T, use_cache=False).logits
    places_1N = torch.arange(max(1, len(row) - SCORED), len(row), device=ids_1T.device)[None]
    logprobs_NV = torch.log_softmax(aligned_rows(logits_1TV, places_1N)[0].float(), dim=-1)
    return logprobs_NV.gather(1, ids_1T[0, places_1N[0]][:, None])[:, 0].cpu().numpy()


@dataclass(frozen=True, slots=True)
class Published:
    """The log-probabilities of the fixed tokens under one version: the student's, and an engine's."""

    own: Sequence[np.ndarray]
    engine: Sequence[np.ndarray]

    def difference(self) -> tuple[float, float]:
        """Nats between the two, in the mean and at most; infinite where one is not finite."""
        gap = np.abs(np.concatenate(self.own) - np.concatenate(self.engine))
        return (float(gap.mean()), float(gap.max())) if np.isfinite(gap).all() else (np.inf, np.inf)


def check_published(now: Published, before: Published | None, *, dtype: str, named: str) -> tuple[float, float]:
    """Whether an engine holds the weights that were published; returns the difference, in the mean and at most.

    Args:
        before: under the version before in the same process; None: there was none.
        dtype: of the weights.
        named: the engine and the version, as a message calls them.

    Raises:
        RunError: it does not.
    """
    mean, most = now.difference()
    allowed = TOLERANCE[dtype]
    if not (mean <= allowed[MEAN] and most <= allowed[MOST]):
        raise RunError(
            f"{named} does not hold the student's weights: log-probabilities of {sum(map(len, now.own))} fixed tokens "
            f"differ by {mean:.3g} nats in the mean and {most:.3g} at most, and in {dtype} {allowed[MEAN]:g} and "
            f"{allowed[MOST]:g} are rounding. Nothing was learnt from what it would have written; with "
            "`rollout.vllm.transport: restart` it is started again on every version"
        )
    if before is not None:
        moved = np.concatenate(now.own) != np.concatenate(before.own)
        kept = np.array_equal(np.concatenate(now.engine), np.concatenate(before.engine))
        if kept and moved.mean() > MOVED:
            raise RunError(
                f"{named} holds the weights of the version before: the student's log-probabilities of {moved.sum()} "
                f"of {len(moved)} fixed tokens have moved, and none of the engine's. With "
                "`rollout.vllm.transport: restart` it is started again on every version"
            )
    return mean, most


# ---- draws


@torch.no_grad()
def next_logprobs(
    model: nn.Module, prompts: Sequence[Sequence[int]], temperature: float, vocabulary: int | None
) -> np.ndarray:
    """Log-probabilities of the token after each prompt, ``(prompts, V)``, under the distribution that is sampled.

    Runs in the processes that hold the model.

    Args:
        prompts: all of one length.
        vocabulary: ids from here on are not the tokenizer's; None: all are.
    """
    with eval_mode(model):
        ids_BT = torch.tensor([[*prompt] for prompt in prompts], device=next(model.parameters()).device)
        logits_BV = model(input_ids=ids_BT, use_cache=False).logits[:, -1, :vocabulary].float()
    return torch.log_softmax(logits_BV / temperature, dim=-1).double().cpu().numpy()


def short_prompts(vocabulary: int) -> list[list[int]]:
    """The prompts of which :func:`most_telling` takes one."""
    return np.random.default_rng(1).integers(0, vocabulary, (CANDIDATES, PROMPT_TOKENS)).tolist()


def most_telling(logprobs_BV: np.ndarray) -> int:
    """The row whose log-probability varies most over its own draws: a temperature off by a part ``e`` moves their mean
    by ``e`` times that variance."""
    return int(np.argmax([_variance(logprobs_V) for logprobs_V in logprobs_BV]))


def visible_temperature(logprobs_V: np.ndarray, draws: int) -> float:
    """By what part a temperature must be off to be refused in nine cases of ten, about, with so many draws."""
    # A chi-square of CELLS - 1 degrees at ERROR_RATE / 2 is about 44, and a noncentral one passes it in nine cases of
    # ten with a noncentrality of about 58: draws x variance x part squared.
    return float(np.sqrt(58.0 / (draws * max(_variance(logprobs_V), 1e-12))))


def shared_beginnings(rows: Sequence[Sequence[int]]) -> list[list[tuple[int, ...]]]:
    """The commonest beginnings of rows that have a token after them, by length from 1 on."""
    by_length: list[list[tuple[int, ...]]] = []
    for length in range(1, LATER_TOKENS):
        counts = Counter(tuple(row[:length]) for row in rows if len(row) > length)
        by_length.append([prefix for prefix, n in counts.most_common(LATER_PREFIXES) if n >= LATER_ROWS])
    return by_length


def later_draws_problem(rows: Sequence[Sequence[int]], logprobs_of: Mapping[tuple[int, ...], np.ndarray]) -> str | None:
    """What is wrong with tokens that were drawn after others, as a sentence; None where nothing is.

    The tests of :func:`draws_problem`, their statistics summed over the beginnings that rows share.

    Args:
        rows: ids that were drawn after one prompt.
        logprobs_of: nats of every id after a beginning of :func:`shared_beginnings`, the prompt before it.
    """
    after = {prefix: [row[len(prefix)] for row in rows if _goes_on(row, prefix)] for prefix in logprobs_of}
    problem = _problem([(after[prefix], logprobs_V) for prefix, logprobs_V in logprobs_of.items()])
    return None if problem is None else f"after the first token of a row, {problem}"


def draws_problem(tokens: Sequence[int], logprobs_V: np.ndarray) -> str | None:
    """What is wrong with draws that should come from a distribution, as a sentence; None where nothing is.

    Two chi-square tests (Pearson 1900) on the same draws, each at half of :data:`ERROR_RATE`: one of tokens, which sees
    a token drawn too often, and one of how likely the drawn tokens are, in few cells, which sees a temperature.

    Args:
        tokens: ids that were drawn.
        logprobs_V: nats of every id; what is beyond must not be drawn.
    """
    return _problem([(tokens, logprobs_V)])


def _problem(groups: Sequence[tuple[Sequence[int], np.ndarray]]) -> str | None:
    """Of draws from several distributions; those of each with its log-probabilities."""
    counted: list[tuple[np.ndarray, np.ndarray]] = []
    for tokens, logprobs_V in groups:
        drawn, size = np.asarray(tokens), len(logprobs_V)
        if drawn.max() >= size or drawn.min() < 0:
            return f"id {int(drawn.max())} was drawn, and the tokenizer has {size}"
        expected = np.exp(logprobs_V - np.logaddexp.reduce(logprobs_V)) * len(drawn)
        counted.append((np.bincount(drawn, minlength=size).astype(float), expected))
    for what, cells_of in (("tokens", _by_token), ("their likelihood", _by_likelihood)):
        cells = [(cells_of(wanted), seen, wanted) for seen, wanted in counted]
        cells = [each for each in cells if each[0].max() > 0]
        if not cells:
            continue
        seen_C, wanted_C = (np.concatenate([np.bincount(each[0], weights=each[i]) for each in cells]) for i in (1, 2))
        parts_C = (seen_C - wanted_C) ** 2 / wanted_C
        chance = float(chdtrc(len(parts_C) - len(cells), parts_C.sum()))
        if not chance > ERROR_RATE / 2:
            worst = int(np.argmax(parts_C))
            return (
                f"{seen_C.sum():.0f} draws by {what} in {len(parts_C)} cells: chi-square {parts_C.sum():.0f}, which a "
                f"right sampler reaches with probability {chance:.1g}; the worst cell has {seen_C[worst]:.0f} draws "
                f"where {wanted_C[worst]:.0f} are expected"
            )
    return None


def _goes_on(row: Sequence[int], prefix: tuple[int, ...]) -> bool:
    return len(row) > len(prefix) and tuple(row[: len(prefix)]) == prefix


def _variance(logprobs_V: np.ndarray) -> float:
    likely_V = np.exp(logprobs_V)
    finite_V = np.where(likely_V > 0, logprobs_V, 0.0)
    return float((likely_V * finite_V**2).sum() - (likely_V * finite_V).sum() ** 2)


def _by_token(expected_V: np.ndarray) -> np.ndarray:
    """A cell a token of which enough draws are expected, and one for all others, or for those and the rarest."""
    order = np.argsort(-expected_V, kind="stable")
    alone = int((expected_V >= EXPECTED).sum())
    if expected_V[order[alone:]].sum() < EXPECTED and alone:
        alone -= 1
    cells = np.full(len(expected_V), alone)
    cells[order[:alone]] = np.arange(alone)
    return cells


def _by_likelihood(expected_V: np.ndarray) -> np.ndarray:
    """Cells of tokens that are about as likely, from the likeliest on, each with about as many draws."""
    order = np.argsort(-expected_V, kind="stable")
    least = max(EXPECTED, expected_V.sum() / CELLS)
    cells, cell, within, left = np.zeros(len(expected_V), dtype=np.int64), 0, 0.0, expected_V.sum()
    for token in order:
        cells[token] = cell
        within, left = within + expected_V[token], left - expected_V[token]
        if within >= least and left >= EXPECTED:
            cell, within = cell + 1, 0.0
    return cells

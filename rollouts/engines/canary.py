"""A canary of the sampler: does it write from the distribution that one plain forward has?

Padding, positions, windows and caches go wrong without an error, and then a run learns from tokens that its student
never meant. So before a run takes its first step, four rows of unequal length are written together, one of which ends
early, and their recorded log-probabilities are held against a forward over each row alone, without cache and padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mopd.distill.models.load import eval_mode
from mopd.distill.types import UserError, Weights, align_logits
from mopd.rollouts.engines.base import Decoding, Drafts
from mopd.rollouts.engines.drafts import can_draft
from mopd.rollouts.engines.generate import Completion, generate

LENGTHS = (3, 11, 25, 1)
"""Tokens of the prompts."""
NEW_TOKENS = 12
EARLY = 2
"""The first row ends at this place, so that the others go on in a smaller batch."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Nats by which two ways to one log-probability may differ, by the dtype of the weights; wrong ones are nats off."""


def check_sampler(weights: Weights, decoding: Decoding, *, named: str) -> float:
    """Write four rows with the weights of every rank and compare; returns the largest difference, in nats.

    Args:
        decoding: of the run.
        named: the model, as messages call it.

    Raises:
        UserError: the model cannot be sampled, or is sampled wrongly.
    """
    answers = weights.on_ranks(_canary, [(decoding,)] * weights.ranks)
    failed = [answer for answer in answers if isinstance(answer, str)]
    if failed:
        raise UserError(f"{named} cannot be sampled here ({failed[0]}); take a model of another family")
    worst, allowed = max(answers, key=lambda pair: pair[0] - pair[1])
    if not worst <= allowed:
        raise UserError(
            f"{named} is sampled wrongly: the log-probabilities that its sampler records and those of a plain forward "
            f"differ by {worst:.3g} nats on four rows, and at most {allowed:g} is rounding; take a model of another "
            f"family"
        )
    return worst


def _canary(model: nn.Module, decoding: Decoding) -> tuple[float, float] | str:
    """The largest difference and the allowed one, in nats; or what the model raised."""
    config: Any = model.config
    ids = min(config.get_text_config().vocab_size, decoding.vocabulary or config.get_text_config().vocab_size)
    room = getattr(config.get_text_config(), "max_position_embeddings", None) or max(LENGTHS) + NEW_TOKENS
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, ids, max(1, min(n, room - NEW_TOKENS))).tolist() for n in LENGTHS]
    decoding = replace(
        decoding, max_new_tokens=min(NEW_TOKENS, room), greedy=False, support=None, step=0, end_token_ids=(-1,)
    )
    with_guesses, decoding = decoding, replace(decoding, drafts=None)
    try:
        alone = generate(model, prompts[:1], [0], decoding)[0]
        early = replace(decoding, end_token_ids=(int(alone.token_ids[min(EARLY, len(alone.token_ids) - 1)]),))
        written = generate(model, prompts, range(len(prompts)), early)
        rows = [*zip(prompts, written, strict=True)]
        if can_draft(model, with_guesses) and with_guesses.drafts is not None:
            guessed = generate(
                model, prompts, range(len(prompts)), replace(early, drafts=Drafts(with_guesses.drafts.limit))
            )
            rows += zip(prompts, guessed, strict=True)
        worst = max(_difference(model, prompt, row, decoding) for prompt, row in rows)
    except Exception as error:  # whatever a model of another family raises
        return f"{type(error).__name__}: {error!s:.200}"
    return worst, TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.bfloat16])


@torch.no_grad()
def _difference(model: nn.Module, prompt: list[int], row: Completion, decoding: Decoding) -> float:
    """Nats between what was recorded of a row and a forward over it alone; infinite where either is not finite."""
    with eval_mode(model):
        ids_1T = torch.tensor([[*prompt, *row.token_ids.tolist()]], device=next(model.parameters()).device)
        logits_TV = align_logits(model(input_ids=ids_1T, use_cache=False).logits)[0, :, : decoding.vocabulary]
        logprobs_TV = torch.log_softmax(logits_TV.float() / decoding.temperature, dim=-1)
        expected_T = logprobs_TV.gather(1, ids_1T[0][:, None])[:, 0].cpu().numpy()
        worst = float(np.abs(expected_T[len(prompt) :] - row.logprobs).max())
    return worst if np.isfinite(worst) else np.inf

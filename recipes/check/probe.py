"""Can an architecture be run at all? A small one made from nothing goes forward once, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mopd.distill.types import UserError

LARGEST = 50_000_000
"""Parameters of a model that is made and run here within a second; a larger one is not tried."""
TOKENS = 8


def probe(config: Any, parameters: int) -> None:
    """One forward of a batch of one sequence on the CPU; the caller's random state is left as it was.

    Args:
        config: the transformers configuration of a model made from nothing.
        parameters: how many the model has.

    Raises:
        UserError: the forward fails, with what it said.
    """
    if parameters >= LARGEST:
        return
    ids_BT = torch.arange(TOKENS).remainder(config.get_text_config().vocab_size)[None]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    except Exception as error:  # whatever a model's code raises on a configuration that does not hold together
        raise UserError(
            f"a {config.model_type} of this `config` can be made, and fails on its first forward of {TOKENS} tokens: "
            f"{type(error).__name__}: {error!s:.300}; mend the `config`"
        ) from error

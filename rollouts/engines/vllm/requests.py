"""What a vLLM process is asked for a batch of rollouts, and what its answer means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mopd.distill.payloads import Support
from mopd.distill.types import Int32
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import Completion
from mopd.rollouts.engines.vllm.server import rows_of


def seed_of(decoding: Decoding, rollout: int) -> int:
    """The seed of a rollout, 63 bits: a pure function of the recipe's seed, the step and the rollout's number."""
    key = np.random.SeedSequence([decoding.seed, decoding.step, rollout])
    return int(key.generate_state(1, np.uint64)[0] >> 1)


def sampling_of(decoding: Decoding) -> dict[str, Any]:
    """vLLM's sampling parameters, but for the seed."""
    support = decoding.support
    settings: dict[str, Any] = {
        "max_tokens": decoding.max_new_tokens,
        "temperature": 0.0 if decoding.greedy else decoding.temperature,
        "stop_token_ids": [*decoding.end_token_ids],
        "ignore_eos": True,  # those are all that ends an answer
        "logprobs": 0 if support is None else support.k + len(support.forced),
        "detokenize": False,
    }
    if decoding.top_p is not None and not decoding.greedy:
        settings["top_p"] = decoding.top_p
    if decoding.top_k is not None and not decoding.greedy:
        settings["top_k"] = decoding.top_k
    return settings


def write_request(
    prompts: Sequence[Sequence[int]], rollouts: Sequence[int], decoding: Decoding
) -> tuple[dict[str, Any], list[int]]:
    """A request for one completion of each prompt, in which equal prompts are one; and where each completion is.

    Returns:
        Arguments of :meth:`rollouts.engines.vllm.process.VLLMProcess.write`; and the place of each prompt's completion
        in the answer, which goes prompt by prompt.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(tuple(prompt), []).append(i)
    order = {i: place for place, i in enumerate(i for members in places.values() for i in members)}
    request = {
        "prompts": [[*prompt] for prompt in places],
        "seeds": [[seed_of(decoding, rollouts[i]) for i in members] for members in places.values()],
        "settings": sampling_of(decoding),
        "vocabulary": decoding.vocabulary,
    }
    return request, [order[i] for i in range(len(prompts))]


def completions_of(reply: Sequence[Sequence[Any]], decoding: Decoding) -> list[Completion]:
    """What a server wrote, as every engine gives it, ended where a stop string does."""
    written = [
        Completion(
            ids_N,
            logprobs_N,
            "eos" if len(ids_N) and ids_N[-1] in decoding.end_token_ids else "length",
            None if decoding.support is None or likeliest_NK is None else _support(likeliest_NK, decoding.support),
        )
        for ids_N, logprobs_N, likeliest_NK in rows_of(reply)
    ]
    return written if decoding.stops is None else [_stopped(completion, decoding.stops) for completion in written]


def _support(likeliest_NK: Int32, support: Support) -> Int32:
    """The forced tokens and the k likeliest others at each place, as :func:`distill.payloads.likeliest` has them."""
    rows = [
        [*support.forced, *[i for i in row if i not in support.forced][: support.k]] for row in likeliest_NK.tolist()
    ]
    return np.array(rows, dtype=np.int32)


def _stopped(completion: Completion, stops: Callable[[torch.Tensor, None], torch.Tensor]) -> Completion:
    """A completion up to the first token that ends a stop string."""
    ids_1N = torch.from_numpy(completion.token_ids).long()[None]
    for n in range(1, len(completion.token_ids) + 1):
        last = n == len(completion.token_ids)
        if bool(stops(ids_1N[:, :n], None)[0]) and not (last and completion.finish == "eos"):
            support = None if completion.support_ids is None else completion.support_ids[:n]
            return Completion(completion.token_ids[:n], completion.logprobs[:n], "stop", support)
    return completion

"""Cases of bfcl-eval played end to end by a model of transformers, a case at a time; what was played is not repeated.

``python -m tests.benchmarks.bfcl MODEL cases=50 calls=3 turn_tokens=48 rows=rows.jsonl`` plays the cases of
``multi_turn_base`` whose first prompt is shortest, greedily, and keeps a row a case. The key-value cache of a case is
kept over its turns, so a token is read once: a later turn goes on behind the ids that it shares with the one before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from mopd.distill.types import Prompt, Rollout
from mopd.rollouts.environments.episodes import TURN_KEYS, EpisodeSampler
from mopd.rollouts.environments.packages.bfcl import BfclEnvironment, read_cases
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.turns import ChatTurns
from mopd.rollouts.tokenizer import end_token_ids, to_prompt

SETTINGS = {"cases": 50, "calls": 3, "turn_tokens": 48, "max_tokens": 1500, "rows": "rows.jsonl"}


class CachedWriter:
    """Writes turns greedily, with a cache for each episode that holds all but the last token of its conversation."""

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self._model, self._ends = model, set(ends)
        self._kept: dict[int, tuple[list[int], DynamicCache]] = {}
        self.read_tokens = 0

    def load_weights(self, weights: Any, *, version: int) -> None:
        """It has its own."""

    def sample(self, prompts: Sequence[Prompt], **how: Any) -> Any:
        """Not asked for: every prompt is an episode's."""
        raise NotImplementedError

    def write(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], *, step: int, greedy: bool, max_new_tokens: int
    ) -> list[Rollout]:
        """See :class:`rollouts.environments.episodes.TurnWriter`."""
        return [self._written(prompt, number, max_new_tokens) for prompt, number in zip(prompts, numbers, strict=True)]

    def _written(self, prompt: Prompt, number: int, max_new_tokens: int) -> Rollout:
        ids, wrote, logprobs = list(prompt.token_ids), list[int](), list[float]()
        before, cache = self._kept.get(number % TURN_KEYS, ([], DynamicCache()))
        if ids[: len(before)] != before:
            before, cache = [], DynamicCache()
        new = ids[len(before) :]
        with torch.inference_mode():
            while not wrote or (wrote[-1] not in self._ends and len(wrote) < max_new_tokens):
                output = self._model(torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
                self.read_tokens += len(new)
                logprobs_V = output.logits[0, -1].float().log_softmax(-1)
                wrote.append(int(logprobs_V.argmax()))
                logprobs.append(float(logprobs_V[wrote[-1]]))
                new = wrote[-1:]
        self._kept[number % TURN_KEYS] = ([*ids, *wrote[:-1]], cache)
        n = len(ids)
        return Rollout(
            prompt=prompt,
            token_ids=np.array([*ids, *wrote], dtype=np.int32),
            loss_mask=np.arange(n + len(wrote)) >= n,
            sampler_logprobs=np.array([0.0] * n + logprobs, dtype=np.float32),
            finish="eos" if wrote[-1] in self._ends else "length",
            version=(0, 0),
            group=number,
            index=number,
        )


def main(path: str, settings: dict[str, Any]) -> None:
    """Play the cases that have no row yet."""
    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    environment = BfclEnvironment("multi_turn_base", {"calls": settings["calls"]}, seconds=60.0)
    limits = EpisodeLimits(64, settings["turn_tokens"], settings["max_tokens"], 600.0)
    task = EnvironmentTask(environment, domain="calls", turns=ChatTurns(tokenizer), limits=limits)
    task.fit(tokenizer)
    print(*task.left_out or ["every case fits the context"], sep="\n")
    rows = Path(settings["rows"])
    known = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    n_train = sum(case.split == "train" for case in read_cases("multi_turn_base"))
    prompts = {}
    for index in range(n_train):
        name = environment.reset(seed=0, split="train", index=index).name
        example = task.example(seed=0, split="train", index=index)
        prompts[name] = to_prompt(tokenizer, domain="calls", example=example)
    shortest = sorted(prompts, key=lambda name: len(prompts[name].token_ids))[: settings["cases"]]
    for name in shortest:
        if name in [row["case"] for row in known]:
            continue
        writer, begun, cpu = CachedWriter(model, end_token_ids(tokenizer, path)), time.time(), time.process_time()
        sampler = EpisodeSampler(
            writer, {"calls": task}, tokenizer, samples_per_prompt=1, max_new_tokens=0,
            end_token_ids=end_token_ids(tokenizer, path),
        )  # fmt: skip
        ((rollout,),) = sampler.sample([prompts[name]], step=0, greedy=True)
        assert rollout.episode is not None
        row = {
            "case": name,
            "prompt_tokens": len(prompts[name].token_ids),
            "tokens": len(rollout.token_ids),
            "read_tokens": writer.read_tokens,
            "seconds": round(time.time() - begun, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "text": tokenizer.decode(rollout.token_ids[len(prompts[name].token_ids) :]),
            **asdict(rollout.episode),
        }
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "text"}, flush=True)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    main(sys.argv[1], {key: type(value)(given.get(key, value)) for key, value in SETTINGS.items()})

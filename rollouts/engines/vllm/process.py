"""One engine of vLLM in a process of its own, run as a file by the Python that has vLLM; it imports nothing of mopd.

Why not vLLM's HTTP server: a request has one seed for all of its prompts, where here every rollout has its own;
its weights are reloaded only in a development mode, whose door is open to whoever reaches the port; its engine lives in
a process behind the server's, which may outlive it. Here one batch has a seed a rollout, and one process is all there
is: it answers requests, each a line of JSON, on a socket that it was born with, and ends when who started it is gone.

Prompts are token ids, and token ids come back, with their log-probabilities under the distribution that they were drawn
from (vLLM's processed ones: tempered, and with ids that are not the tokenizer's left out).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any


class VLLMProcess:
    """What requests call: every public method is a request's `call`, with its `arguments`."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._adapter: Any = None
        self._drafts = False
        self.vocabulary: int | None = None
        """Ids from here on are never drawn; None: all ids are the tokenizer's."""

    def start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint; answers with vLLM's version and how many tokens a sequence may have."""
        vllm = import_module("vllm")
        self._drafts = bool(arguments.get("speculative_config"))
        own = {} if self._drafts else {"logits_processors": [_without_ids(self)]}  # vLLM takes only one of the two
        self._llm = vllm.LLM(**arguments, **own)
        return {"version": vllm.__version__, "context": self._llm.llm_engine.model_config.max_model_len}

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: dict[str, Any],
        vocabulary: int | None,
    ) -> list[list[Any]]:
        """Completions of each prompt, one a seed: prompt by prompt token ids, log-probabilities and likeliest ids.

        Args:
            seeds: of each prompt's completions: a prompt is sent once for all of them.
            settings: vLLM's sampling parameters, but for the seed.
            vocabulary: see the attribute.
        """
        self.vocabulary = vocabulary
        if self._drafts and vocabulary is not None:
            settings = settings | {"allowed_token_ids": [*range(vocabulary)]}
        parameters = import_module("vllm").SamplingParams
        asked = [
            ({"prompt_token_ids": [*prompt]}, parameters(seed=seed, **settings))
            for prompt, own in zip(prompts, seeds, strict=True)
            for seed in own
        ]
        finished = self._llm.generate(
            [prompt for prompt, _ in asked], [how for _, how in asked], use_tqdm=False, lora_request=self._adapter
        )
        return [_completion(request.outputs[0], settings.get("logprobs") or 0) for request in finished]

    def score(self, rows: Sequence[Sequence[int]], last: int) -> list[list[float]]:
        """The log-probabilities of so many tokens at the end of every row, each given those before it, untempered.

        Each is asked for after a prompt of its own, as what is written is: vLLM's scores of prompts (`prompt_logprobs`)
        raise under an adapter, whose rows they miscount (0.32). Where vLLM drafts, it is the other way round: there are
        no adapters, and it gives no log-probabilities of tokens that are asked for.
        """
        self.vocabulary = None
        how = import_module("vllm").SamplingParams
        counts = [min(last, len(row) - 1) for row in rows]
        if self._drafts:
            asked, plain = [{"prompt_token_ids": [*row]} for row in rows], how(max_tokens=1, prompt_logprobs=0)
            read = [request.prompt_logprobs for request in self._llm.generate(asked, plain, use_tqdm=False)]
            return [
                [read[i][t][row[t]].logprob for t in range(len(row) - n, len(row))]
                for i, (row, n) in enumerate(zip(rows, counts, strict=True))
            ]
        places = [(row, t) for row, n in zip(rows, counts, strict=True) for t in range(len(row) - n, len(row))]
        finished = self._llm.generate(
            [{"prompt_token_ids": [*row[:t]]} for row, t in places],
            [
                how(max_tokens=1, temperature=1.0, seed=0, logprob_token_ids=[row[t]], detokenize=False)
                for row, t in places
            ],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        pairs = zip(finished, places, strict=True)
        scores = iter([request.outputs[0].logprobs[0][row[t]].logprob for request, (row, t) in pairs])
        return [[next(scores) for _ in range(n)] for n in counts]

    def reload(self, folder: str) -> None:
        """Take on the weights that lie in ``folder``, as a checkpoint's do; what was kept of prompts is forgotten."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps what the weights before made of prompts (reset_prefix_cache)")

    def adapt(self, folder: str, number: int) -> None:
        """Answer with the LoRA adapter in ``folder`` from now on; every version has a number of its own, from 1."""
        request = import_module("vllm.lora.request").LoRARequest(f"version-{number}", number, folder)
        before, self._adapter = self._adapter, request
        if before is not None:
            self._llm.llm_engine.remove_lora(before.lora_int_id)
        if not self._llm.llm_engine.add_lora(request):  # here, so that the folder may go
            raise RuntimeError("vLLM did not take the adapter (add_lora)")


def _completion(completion: Any, likeliest: int) -> list[Any]:
    """Token ids, their log-probabilities, and so many of the likeliest ids at each place (None where none is asked)."""
    ids = [*completion.token_ids]
    known = completion.logprobs
    logprobs = [at[token].logprob for at, token in zip(known, ids, strict=True)]
    if not likeliest:
        return [ids, logprobs, None]
    ranked = [sorted(at, key=lambda token: at[token].rank)[:likeliest] for at in known]
    return [ids, logprobs, ranked]


def _without_ids(engine: VLLMProcess) -> type:
    """A logits processor of vLLM's that leaves no probability to ids that are not the tokenizer's."""
    base = import_module("vllm.v1.sample.logits_processor").LogitsProcessor

    class WithoutIds(base):
        def __init__(self, *_: Any) -> None:
            pass

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            pass

        def apply(self, logits: Any) -> Any:
            if engine.vocabulary is not None:
                logits[..., engine.vocabulary :] = -float("inf")
            return logits

    return WithoutIds


def _end_with_parent(folder: str) -> None:
    """The process that started this one holds the other end of its standard input, and never writes."""

    def wait() -> None:
        sys.stdin.buffer.read()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="parent").start()


def _serve(channel: socket.socket) -> None:
    engine = VLLMProcess()
    with channel, channel.makefile("rb") as requests:
        for line in requests:
            request = json.loads(line)
            try:
                reply = {"answer": getattr(engine, request["call"])(**request["arguments"])}
            except (ValueError, TypeError) as error:  # what vLLM raises of requests and arguments that it will not take
                reply = {"refused": f"{type(error).__name__}: {error}"}
            except Exception as error:
                reply = {"failed": f"{type(error).__name__}: {error}"}
            channel.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    _end_with_parent(sys.argv[2])
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""The servers of a run: started again where they are lost, and held to the version that is published.

What is lost with a server, because it died, hangs or failed, is asked of a new one that has been given the same
weights, as often as the fault policy says. After every publish its log-probabilities are compared with the student's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopd.distill.hosts import HOSTS, death
from mopd.distill.recipe import FaultRecipe
from mopd.distill.recipe.schema.vllm import Transport
from mopd.distill.types import RunError, Weights
from mopd.rollouts.engines.agreement import (
    LATER_TOKENS,
    SCORED,
    Published,
    check_published,
    draws_problem,
    later_draws_problem,
    most_telling,
    next_logprobs,
    row_logprobs,
    shared_beginnings,
    short_prompts,
    visible_temperature,
)
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import Completion
from mopd.rollouts.engines.vllm.requests import completions_of, write_request
from mopd.rollouts.engines.vllm.server import (
    SPECULATION,
    HeldModel,
    ServerLost,
    ServerRefused,
    ServerSpec,
    VLLMServer,
)
from mopd.rollouts.engines.workers import as_array

RECORD = "published.jsonl"
GRACE_SECONDS = 30.0
"""How much longer than its process a host may take to answer: it writes files, and gives up on the process itself."""
LOCK_SECONDS = 1.0
"""How long a call that is under way may take to its end before its server is ended all the same."""
DRAWS_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class _Version:
    """Weights that servers are to hold: where they are kept, and the student's log-probabilities under them."""

    number: int
    state: Any
    own: Sequence[np.ndarray]


class Hosted:
    """Who owns a server: a host of Ray's in which it is held.

    Args:
        resources: that the host takes of its node besides a part of a GPU, by Ray's names.
    """

    def __init__(self, spec: ServerSpec, resources: Mapping[str, float]) -> None:
        self._host = HOSTS.take(gpus=spec.gpus, resources=resources)
        self._named = f"vLLM server {spec.number}"
        self._host.hold.remote(VLLMServer, (spec,))

    def call(self, method: str, arguments: tuple[Any, ...], stored: tuple[Any, ...], seconds: float | None) -> Any:
        """What a method of the server answers to ``stored``, which may lie in Ray's store, and ``arguments``.

        Raises:
            ServerLost, ServerRefused: see :class:`rollouts.engines.vllm.server.VLLMServer`; or the host was lost.
        """
        import ray
        import ray.exceptions

        limit = None if seconds is None else seconds + GRACE_SECONDS
        try:
            return ray.get(self._host.ask.remote(method, arguments, *stored), timeout=limit)
        except ray.exceptions.GetTimeoutError:
            raise ServerLost(f"the host of {self._named} hangs: no answer to `{method}` in {limit:g} s") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ServerLost | ServerRefused):
                raise error.cause from None
            raise ServerRefused(f"{self._named} failed at `{method}`: {error}") from error
        except ray.exceptions.RayError as error:
            raise ServerLost(f"the host of {self._named} died: {death(error)}") from error

    def close(self, *, at_once: bool) -> None:
        """End the process, then its host; the process of a dead host ends by itself.

        Args:
            at_once: somebody waits for an answer of it, who is not to be waited for.
        """
        import ray
        import ray.exceptions

        if not at_once:
            with suppress(ray.exceptions.RayError):  # it is dead, or hangs
                ray.get(self._host.ask.remote("close", ()), timeout=GRACE_SECONDS)
        ray.kill(self._host)


class Here:
    """Who owns a server: this process. See :class:`Hosted`."""

    def __init__(self, server: VLLMServer) -> None:
        self._server = server

    def call(self, method: str, arguments: tuple[Any, ...], stored: tuple[Any, ...], seconds: float | None) -> Any:
        """What a method of the server answers."""
        return getattr(self._server, method)(*stored, *arguments)

    def close(self, *, at_once: bool) -> None:
        """End the process."""
        self._server.close()


class _Server:
    """One server, which is started again where it was lost, and holds the version that is wanted before it is asked."""

    def __init__(self, spec: ServerSpec, servers: VLLMServers) -> None:
        self.spec, self._servers = spec, servers
        self._owner: Hosted | Here | None = None
        self._held: _Version | None = None
        self._published: Published | None = None
        self._refused: ServerRefused | None = None
        self._lock = threading.Lock()  # one thread at a time asks, starts or ends it

    def ask(self, call: str, arguments: Mapping[str, Any], seconds: float | None) -> Any:
        """The answer of a server that holds the version that is wanted.

        Raises:
            RunError: it was lost more often than the fault policy bears, refuses, or does not hold the weights.
        """
        return self._again_if_lost(lambda owner: owner.call("ask", (call, arguments, seconds), (), seconds))

    def prepare(self) -> None:
        """Have it hold the version that is wanted, and compare.

        Raises:
            RunError: as :meth:`ask`.
        """
        self._again_if_lost(lambda _: None)

    def _again_if_lost(self, do: Callable[[Hosted | Here], Any]) -> Any:
        faults = self._servers.faults
        for attempt in range(faults.retries + 1):
            try:
                with self._lock:
                    return do(self._prepared())
            except ServerLost as error:
                if self._servers.closed:
                    raise
                self.close()
                if attempt == faults.retries:
                    raise RunError(
                        f"{error}. It was lost {attempt + 1} times in a row, and `faults.retries` is {faults.retries}; "
                        "the last checkpoint resumes the run"
                    ) from error
                pause, why = faults.backoff_seconds * 2**attempt, str(error).splitlines()[0]
                self._servers.say(f"{why}; it is started again in {pause:g} s, with the weights that it had")
                self._servers.note({"lost": self.spec.number, "why": why})
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _prepared(self) -> Hosted | Here:
        seconds, wanted = self._servers.faults.start_seconds, self._servers.wanted
        if self._refused is not None:
            raise self._refused
        if self._owner is None:
            self._owner = self._servers.own(self.spec)
            if self._servers.starts_with_weights:
                self._owner.call("begin", (self._servers.model,), (), seconds)
            else:
                self._start(self._owner, seconds)
        if wanted is not None and wanted is not self._held:
            self._take_on(self._owner, wanted, seconds)
        return self._owner

    def _start(self, owner: Hosted | Here, seconds: float) -> None:
        began = time.monotonic()
        try:
            about = owner.call("start", (self._servers.model, seconds), (), seconds)
        except ServerRefused as error:  # it would again, for whoever asks next
            self._refused = error
            raise
        self._servers.note({"started": self.spec.number, "seconds": time.monotonic() - began, **about})

    def _take_on(self, owner: Hosted | Here, wanted: _Version, seconds: float) -> None:
        began, transport = time.monotonic(), self._servers.transport
        owner.call("publish", (wanted.number, transport, seconds), (wanted.state,), seconds)
        asked = {"rows": self._servers.rows, "last": SCORED}
        scores = owner.call("ask", ("score", asked, seconds), (), seconds)
        now = Published(wanted.own, [np.array(row, dtype=np.float32) for row in scores])
        named = f"vLLM server {self.spec.number}, to which version {wanted.number} was published by {transport},"
        mean, most = check_published(now, self._published, dtype=self.spec.dtype, named=named)
        self._held, self._published = wanted, now
        self._servers.note({
            "published": wanted.number, "server": self.spec.number, "transport": transport,
            "seconds": time.monotonic() - began, "mean_difference": mean, "largest_difference": most,
        })  # fmt: skip

    def close(self) -> None:
        """End it, also while somebody waits for it."""
        ours = self._lock.acquire(timeout=LOCK_SECONDS)
        try:
            owner, self._owner, self._held, self._published, self._refused = self._owner, None, None, None, None
            if owner is not None:
                owner.close(at_once=not ours)
        finally:
            if ours:
                self._lock.release()


class VLLMServers:
    """Servers that all hold the same weights. Satisfies :class:`rollouts.engines.base.WeightTransport`.

    Args:
        specs: of each.
        faults: how often, and after what pause, one is started again.
        limit_seconds: that one may take for a microbatch; None: for ever.
        own: makes who owns a server.
        share: puts weights where all owners find them.
        say: to people.
    """

    def __init__(
        self,
        specs: Sequence[ServerSpec],
        *,
        faults: FaultRecipe,
        limit_seconds: float | None,
        own: Callable[[ServerSpec], Hosted | Here],
        share: Callable[[Any], Any],
        say: Callable[[str], None],
    ) -> None:
        self.faults, self.own, self.say = faults, own, say
        self.model = HeldModel("")
        self.transport: Transport = "reload"
        self.wanted: _Version | None = None
        self.rows: list[list[int]] = []
        self._limit_seconds, self._share = limit_seconds, share
        self.closed = False
        self._record = None if specs[0].logs is None else Path(specs[0].logs) / RECORD
        self._noting = threading.Lock()
        self._servers = [_Server(spec, self) for spec in specs]
        self._threads = ThreadPoolExecutor(len(specs), thread_name_prefix="vllm")

    @property
    def ranks(self) -> int:
        """How many servers there are."""
        return len(self._servers)

    @property
    def starts_with_weights(self) -> bool:
        """Whether a server is started on the weights that are published, and not before."""
        return self.transport == "restart"

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Refuse.

        Raises:
            TypeError: always; the model is one of vLLM's, and takes no function of ours.
        """
        raise TypeError("servers of vLLM hold a model of its own, which takes no function of ours")

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Refuse.

        Raises:
            TypeError: always; weights go into vLLM, and none come out.
        """
        raise TypeError("servers of vLLM give no weights back")

    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """Refuse; see :meth:`state_dict`."""
        return self.state_dict()

    def hold(self, model: HeldModel) -> None:
        """Begin to start every server with a checkpoint, in the place of what it held; who asks one waits for it."""
        for server in self._servers:
            server.close()
        self.model, self.wanted = model, None
        if not self.starts_with_weights:
            for server in self._servers:
                self._threads.submit(server.prepare)  # who asks next is told what went wrong

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """Have every server hold ``weights``; those that they hold already are not sent again.

        Raises:
            RunError: a server was lost for good, or does not hold the student's weights afterwards.
        """
        own = weights.on_ranks(row_logprobs, [(self.rows,)] * weights.ranks)[0]
        before = self.wanted
        if before is None or before.number != version or not _same(before.own, own):
            tensors = weights.adapter_state() if self.transport == "adapter" else weights.state_dict()
            state = self._share({name: as_array(tensor) for name, tensor in tensors.items()})
            self.wanted = _Version(version, state, own)
        self._each([()] * self.ranks, lambda server, _: server.prepare())
        return self

    def complete(self, weights: Weights, arguments: Sequence[tuple[Any, ...]]) -> list[list[Completion]]:
        """What every server writes, each to arguments of :func:`rollouts.engines.generate.generate`, but the model."""
        return self._each(arguments, lambda server, asked: self._write(server, *asked))

    def check_draws(self, weights: Weights, decoding: Decoding, *, draws: int, vocabulary: int) -> None:
        """Whether what the servers draw comes from the student's distribution.

        Args:
            weights: the student's, which the servers hold.
            draws: how many tokens.
            vocabulary: ids of the tokenizer.

        Raises:
            RunError: it does not.
        """
        prompts = short_prompts(vocabulary)
        asked = (prompts, decoding.temperature, decoding.vocabulary)
        logprobs_BV = weights.on_ranks(next_logprobs, [asked] * weights.ranks)[0]
        telling = most_telling(logprobs_BV)
        prompt, logprobs_V = prompts[telling], logprobs_BV[telling]
        how = replace(decoding, greedy=False, support=None, top_p=None, top_k=None, stops=None)
        first = self._draw(weights, prompt, range(draws), replace(how, max_new_tokens=1))
        problem = draws_problem([row[0] for row in first], logprobs_V)
        if problem is None:
            later = range(draws, draws + max(1, draws // LATER_TOKENS))
            problem = self._later_problem(weights, prompt, later, replace(how, max_new_tokens=LATER_TOKENS))
        visible = visible_temperature(logprobs_V, draws)
        self.note({"draws": draws, "prompt": prompt, "visible_temperature": visible, "problem": problem})
        if problem is not None:
            drafting = any(SPECULATION in server.spec.extra for server in self._servers)
            raise RunError(
                f"vLLM does not draw from the student's distribution at temperature {decoding.temperature:g}: "
                f"{problem}. Nothing was learnt from what it would have written; {_remedy(drafting=drafting)}"
            )

    def _later_problem(
        self, weights: Weights, prompt: Sequence[int], rollouts: Sequence[int], decoding: Decoding
    ) -> str | None:
        """What is wrong with the tokens that are drawn after a first one."""
        rows = self._draw(weights, prompt, rollouts, decoding)
        logprobs_of: dict[tuple[int, ...], np.ndarray] = {}
        for prefixes in filter(None, shared_beginnings(rows)):
            asked = ([[*prompt, *prefix] for prefix in prefixes], decoding.temperature, decoding.vocabulary)
            logprobs_of |= zip(prefixes, weights.on_ranks(next_logprobs, [asked] * weights.ranks)[0], strict=True)
        return later_draws_problem(rows, logprobs_of)

    def _draw(
        self, weights: Weights, prompt: Sequence[int], rollouts: Sequence[int], decoding: Decoding
    ) -> list[list[int]]:
        """What the servers draw after one prompt, a row for each number of a rollout."""
        rows: list[list[int]] = []
        at_once = DRAWS_AT_ONCE * self.ranks
        for start in range(0, len(rollouts), at_once):
            batch = rollouts[start : start + at_once]  # not per token
            hands = [[*batch][rank :: self.ranks] for rank in range(self.ranks)]
            written = self.complete(weights, [([prompt] * len(hand), hand, decoding) for hand in hands])
            rows += [completion.token_ids.tolist() for hand in written for completion in hand]
        return rows

    def note(self, row: Mapping[str, Any]) -> None:
        """Write down what happened, in the run's folder."""
        if self._record is not None:
            with self._noting:
                self._record.parent.mkdir(parents=True, exist_ok=True)
                with open(self._record, "a") as file:
                    file.write(json.dumps({"time": time.time(), **row}) + "\n")

    def close(self) -> None:
        """End every server."""
        self.closed = True
        for server in self._servers:
            server.close()
        self._threads.shutdown(cancel_futures=True)

    def _each(self, arguments: Sequence[tuple[Any, ...]], do: Callable[[_Server, tuple[Any, ...]], Any]) -> list[Any]:
        """What is done with each server and arguments of its own, side by side."""
        pairs = zip(self._servers, arguments, strict=True)
        return list(self._threads.map(lambda pair: do(*pair), pairs))

    def _write(
        self, server: _Server, prompts: Sequence[Sequence[int]], rollouts: Sequence[int], decoding: Decoding
    ) -> list[Completion]:
        if not prompts:
            return []
        request, places = write_request(prompts, rollouts, decoding)
        written = completions_of(server.ask("write", request, self._limit_seconds), decoding)
        return [written[place] for place in places]


def _same(before: Sequence[np.ndarray], now: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))


def _remedy(*, drafting: bool) -> str:
    """What to do about a server that draws wrongly; ``drafting``: it guesses several tokens a forward."""
    if drafting:
        return (
            f"take `{SPECULATION}` out of `rollout.vllm.extra`: vLLM 0.32 for CPUs draws wrongly with it at any "
            "temperature above 0, and reports right log-probabilities"
        )
    return "take another version of vLLM, or `rollout.engine: in_process`"

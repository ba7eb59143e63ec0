"""A specialist loaded from its checkpoint, scoring exact token ids. No Ray here."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mopd.distill.models.adapters import active, with_adapters
from mopd.distill.models.attention import AttnImplementation
from mopd.distill.models.heads import fingerprint, in_place_of_head, logits_at, plain_head
from mopd.distill.models.load import load_model
from mopd.distill.models.packing import forward_rows, rows_of
from mopd.distill.payload_rows import AskedSupport, payload_spec
from mopd.distill.payloads import Support, to_numpy
from mopd.distill.types import Bool, Hidden, Int32, Payload, PayloadName, align_logits
from mopd.teachers.kinds.base import TeacherKind, TeacherSetup
from mopd.teachers.scorer import Conditions


def microbatches(lengths: Sequence[int], tokens: int, *, packing: bool = False) -> list[list[int]]:
    """Which rollouts share a forward: positions in ``lengths``, longest first, of at most ``tokens`` tokens.

    A pure function of its arguments, so that whoever scores a microbatch, and however often, gets the same last digits.
    A longer rollout goes alone.

    Args:
        packing: padding is not counted.
    """
    # Longest first, so that padding is small and the first forward is the one that could run out of memory.
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    taken: list[list[int]] = []
    while order:
        n = forward_rows([lengths[i] for i in order], tokens, packing=packing)
        taken.append(order[:n])
        order = order[n:]
    return taken


class TeacherModel:
    """A frozen causal language model that says how likely given tokens are.

    Args:
        path: a Hugging Face checkpoint: a folder, or a Hub id.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"`` or ``"bfloat16"``; log-softmax is always taken in float32.
        temperature: logits are divided by it, as the student's are.
        microbatch_tokens: padded tokens of one forward at most; a longer rollout goes alone.
        support: which tokens to ship for payload ``topk``.
        adapters: folders of LoRA adapters over this one base; each makes another teacher of it.
        vocabulary: its distributions are over this many ids, see :class:`teachers.scorer.Conditions`.
        trust_remote_code: whether Python code that lies in the checkpoint's folder may run.
        attention: how it computes attention.
        packing: the rollouts of a forward are laid one after another, without padding.
    """

    answers_masks = True
    """``score`` takes ``masks``."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str,
        dtype: str,
        temperature: float,
        microbatch_tokens: int,
        support: Support | None = None,
        adapters: Sequence[str] = (),
        vocabulary: int | None = None,
        trust_remote_code: bool = False,
        attention: AttnImplementation = "auto",
        packing: bool = False,
    ) -> None:
        how: Any = {"trust_remote_code": trust_remote_code, "attention": attention}
        base = load_model(path, device=device, dtype=dtype, **how)
        conditions = Conditions(temperature, microbatch_tokens, support, vocabulary, packing)
        self._hold(with_adapters(base, adapters, device=device), conditions, device=torch.device(device), dtype=dtype)

    @classmethod
    def around(cls, model: Any, conditions: Conditions) -> TeacherModel:
        """A model that is here already, on the device and in the dtype that it has."""
        teacher = cls.__new__(cls)
        weight = next(model.parameters())
        dtype = str(weight.dtype).removeprefix("torch.")
        teacher._hold(model, conditions, device=weight.device, dtype=dtype)
        return teacher

    def _hold(self, model: Any, conditions: Conditions, *, device: torch.device, dtype: str) -> None:
        self.model: Any = model
        self.device = device
        self.dtype = dtype
        self.temperature = conditions.temperature
        self.microbatch_tokens = conditions.microbatch_tokens
        self.packing = conditions.packing
        self.support = conditions.support
        rows = int(self.model.config.get_text_config().vocab_size)
        self.vocabulary = rows if conditions.vocabulary is None else min(rows, conditions.vocabulary)
        """How many output tokens it distributes over."""

    def digest(self) -> str:
        """A hash of all weights, adapters and buffers included: names, shapes, dtypes and every bit."""
        digest = hashlib.sha256()
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def _head(self) -> str:
        return fingerprint(plain_head(self.model).weight)

    @torch.no_grad()
    def score(
        self,
        token_ids: Sequence[Int32],
        payload: PayloadName,
        adapter: str | None = None,
        given: Sequence[Int32] | None = None,
        masks: Sequence[Bool] | None = None,
    ) -> list[Payload]:
        """Score rollouts, each an array of token ids of shape ``(T,)``, in order; without an adapter, as the base.

        Args:
            given: the student's likeliest tokens of each rollout, ``(T, K)``, where the support asks for them.
            masks: the tokens of each rollout that are asked for, ``(T,)``, never the first; its head sees no others.
                None: all.

        Returns:
            Aligned payloads of T rows each, or of one for each token that is asked for: ``Sampled`` log-probabilities
            ``(T,)``, ``Full`` ones ``(T, V)`` or ``TopK`` ones ``(T, K)``, in nats; or ``Hidden`` states ``(T, H)``
            in the model's dtype. Row 0 says nothing,
            for no token precedes token 0.

        Raises:
            UserError: hidden states are asked for, and do not tell this model's distribution.
        """
        scored: dict[int, Payload] = {}
        with active(self.model, adapter):
            for taken in microbatches([len(ids) for ids in token_ids], self.microbatch_tokens, packing=self.packing):
                taken_given = None if given is None else [given[i] for i in taken]
                asked = [np.arange(len(token_ids[i])) if masks is None else np.flatnonzero(masks[i]) for i in taken]
                payloads = self._forward([token_ids[i] for i in taken], payload, taken_given, asked)
                scored |= zip(taken, payloads, strict=True)
        return [scored[i] for i in range(len(token_ids))]

    @torch.no_grad()
    def reference(self, ids_T: Int32, adapter: str | None = None) -> npt.NDArray[np.float64]:
        """What its scores are tested against: its distribution after one rollout's tokens, ``(T, V)``, in nats.

        One forward without padding, log-softmax in float64, and none of the code that scores.
        """
        ids_1T = torch.from_numpy(ids_T[None].astype(np.int64)).to(self.device)
        with active(self.model, adapter):
            logits_TV = align_logits(self.model(input_ids=ids_1T, use_cache=False).logits)[
                0, :, : self.vocabulary
            ].double()
        return torch.log_softmax(logits_TV / self.temperature, dim=-1).cpu().numpy()

    def _forward(
        self,
        token_ids: Sequence[Int32],
        payload: PayloadName,
        given: Sequence[Int32] | None,
        asked: Sequence[npt.NDArray[np.int64]],
    ) -> list[Payload]:
        """One forward; ``asked``: the places of each rollout's tokens that are asked for, ``(N,)``."""
        padded = np.zeros((len(token_ids), max(len(ids) for ids in token_ids)), dtype=np.int64)
        mask = np.zeros_like(padded)
        places = np.zeros((len(token_ids), max(1, *(len(places_N) for places_N in asked))), dtype=np.int64)
        for b, (ids, places_N) in enumerate(zip(token_ids, asked, strict=True)):
            padded[b, : len(ids)] = ids
            mask[b, : len(ids)] = 1
            places[b, : len(places_N)] = places_N
        ids_BT = torch.from_numpy(padded).to(self.device)
        places_BN = torch.from_numpy(places).to(self.device)
        rows = rows_of(ids_BT, torch.from_numpy(mask).to(self.device), packing=self.packing)
        counts = [len(places_N) for places_N in asked]
        if payload == "hidden":
            head = plain_head(self.model)
            hidden_BNH = in_place_of_head(self.model, head, lambda hidden: rows.aligned(hidden, places_BN), rows).cpu()
            return [Hidden(to_numpy(hidden_BNH[b, :n]), self._head) for b, n in enumerate(counts)]
        logits_BNV = logits_at(self.model, self.model, places_BN, rows)[..., : self.vocabulary]
        logprobs_BNV = torch.log_softmax(logits_BNV.float() / self.temperature, dim=-1)
        of_logprobs = payload_spec(payload).of_logprobs
        assert of_logprobs is not None, f"payload {payload} is not made of distributions"
        ids_BN = ids_BT.gather(1, places_BN)
        given_NKs = [None] * len(counts) if given is None else [
            _index(ids_TK[places_N], self.device) for ids_TK, places_N in zip(given, asked, strict=True)
        ]  # fmt: skip
        return [
            of_logprobs(logprobs_BNV[b, :n], ids_BN[b, :n], AskedSupport(self.support, given_NK))
            for b, (n, given_NK) in enumerate(zip(counts, given_NKs, strict=True))
        ]


def _index(ids_TK: Int32, device: torch.device) -> torch.Tensor:
    """Token ids as torch takes them."""
    return torch.from_numpy(ids_TK.astype(np.int64)).to(device)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A teacher's source: a checkpoint of transformers, on a device of the process that opens it."""

    path: str
    device: str
    dtype: str
    trust_remote_code: bool = False
    attention: AttnImplementation = "auto"

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> TeacherModel:
        """Load it, with adapters beside it; see :class:`TeacherModel`."""
        return TeacherModel(
            self.path,
            device=self.device,
            dtype=self.dtype,
            temperature=conditions.temperature,
            microbatch_tokens=conditions.microbatch_tokens,
            adapters=adapters,
            support=conditions.support,
            vocabulary=conditions.vocabulary,
            trust_remote_code=self.trust_remote_code,
            attention=self.attention,
            packing=conditions.packing,
        )

    def __str__(self) -> str:
        return f"the checkpoint at {self.path}"


def _source(setup: TeacherSetup) -> Checkpoint:
    how = setup.stanza.attn_implementation
    return Checkpoint(setup.folder, setup.device, setup.dtype, setup.trust_remote_code, how)


CHECKPOINT = TeacherKind(
    "checkpoint",
    _source,
    payloads=("sampled", "topk", "full", "hidden"),
    reads=frozenset({"adapter", "dtype", "device", "gpus", "attn_implementation"}),
    unread=dict.fromkeys(("served_model", "api_key_env"), "no `endpoint` is asked"),
    can_write=True,
    packs=True,
)
"""The weights of `model`, loaded by transformers, alone or under a LoRA adapter."""

"""Output heads: a teacher's, read from its checkpoint; and what runs in a head's place, on what would go into it.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, H hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mopd.distill.models.load import load_model
from mopd.distill.models.packing import ModelRows
from mopd.distill.types import UserError

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where a teacher's output head is: its checkpoint, the dtype that it is used in, whether its own code may run."""

    path: str
    dtype: str
    trust_remote_code: bool = False

    def read(self, device: torch.device | str) -> Tensor:
        """The head's weight, ``(V, H)``; nothing else of the checkpoint is read where it names the head as its model.

        Raises:
            OSError: there is no checkpoint, or it cannot be read.
            UserError: it lacks weights.
        """
        dtype = getattr(torch, self.dtype)
        for name in self._names():
            weight_VH = _tensor(Path(self.path), name)
            if weight_VH is not None and weight_VH.dtype.itemsize > 1:  # one that is packed has its scales elsewhere
                return weight_VH.to(device, dtype)
        # Whatever the file calls it (an old format, names of another version): transformers knows.
        model = load_model(self.path, device="cpu", dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        return plain_head(model).weight.detach().clone().to(device)

    def _names(self) -> list[str]:
        """What the checkpoint may call its head: tied to the embeddings, it has their name."""
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = {"trust_remote_code": self.trust_remote_code}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.path, **trust), **trust)
        weight = plain_head(model).weight
        return [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is weight]


def plain_head(model: Any) -> nn.Linear:
    """The matrix that turns last hidden states into logits; of a causal model of transformers, in peft's wrapper too.

    Raises:
        UserError: the head is something else, or has a bias. The message is a predicate.
    """
    head = without_adapters(model).get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(f"has an output head that is no plain matrix ({type(head).__name__})")
    if head.bias is not None:
        raise UserError("has a bias in its output head")
    return head


def fingerprint(weight_VH: Tensor) -> str:
    """Names a head by its content: shape, dtype and every bit."""
    digest = hashlib.blake2b(f"{list(weight_VH.shape)} {weight_VH.dtype}".encode(), digest_size=8)
    digest.update(weight_VH.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def head_problem(model: Any) -> str | None:
    """Why a model's logits are not its last hidden states times a matrix, as a predicate; None where they are.

    Args:
        model: of transformers, on the meta device, with adapters or without; unusable afterwards.
    """
    from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions as Output

    try:
        head = plain_head(model)
    except UserError as error:
        return str(error)
    inner, shape = without_adapters(model), (1, 2, head.weight.shape[1])
    inner.base_model.forward = lambda *_args, **_kwargs: Output(last_hidden_state=torch.empty(shape, device="meta"))
    made: list[Tensor] = []

    def note(hidden_BTH: Tensor) -> Tensor:
        made.append(torch.empty_like(hidden_BTH, dtype=torch.float32))
        return made[0]

    vars(head)["forward"] = note
    try:
        logits = inner(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"), use_cache=False).logits
    except Exception as error:  # whatever a model of other habits raises
        return f"does not let its output head be seen apart ({type(error).__name__}: {error!s:.100})"
    return None if made and logits is made[0] else "scales or caps its logits after its output head"


def in_place_of_head(
    model: Callable[..., Any], head: nn.Module, fn: Callable[[Tensor], Tensor], rows: ModelRows
) -> Tensor:
    """The logits of a model called with ``rows``, with ``fn(hidden_BTH)`` in the place of the head's own forward.

    It runs as the head's forward, so that whatever an engine does around that module (ZeRO-3 gathers its weight, and
    gathers it again for the backward) is done for ``fn``.

    Args:
        model: a causal model of transformers, or an engine around one.
        head: its :func:`plain_head`.
        fn: of the hidden states as the model has them: of packed rows ``(1, S, H)``.

    Raises:
        UserError: the model does more to its logits after the head.
    """
    made: list[Tensor] = []

    def forward(hidden_BTH: Tensor) -> Tensor:
        made.append(fn(hidden_BTH))
        return made[0]

    vars(head)["forward"] = forward
    try:
        with rows.attending():
            logits = model(**rows.inputs, use_cache=False).logits
    finally:
        del vars(head)["forward"]
    # Compared without NaN, which is equal to nothing and reported elsewhere.
    if logits.shape != made[0].shape or not torch.equal(logits.detach().nan_to_num(), made[0].detach().nan_to_num()):
        raise UserError(
            "the model scales or caps its logits after its output head, so hidden states do not tell its distribution; "
            "take `loss: {estimator: full_reverse_kl, payload: full}`"
        )
    return logits


def logits_at(model: Callable[..., Any], module: Any, places_BN: Tensor, rows: ModelRows) -> Tensor:
    """A causal model's logits of some tokens alone, aligned, ``(B, N, V)``: its head sees no other row.

    A model whose head cannot be found makes all of them, and the others are left out afterwards.

    Args:
        model: of transformers, or an engine around one, whose module is ``module``; in peft's wrapper, too.
        places_BN: int64, where the tokens are in their sequences, from 1; at 0 the result says nothing.
    """
    head = without_adapters(module).get_output_embeddings()
    selected = False
    inputs = rows.inputs

    def forward(hidden_BTH: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal selected
        selected = hidden_BTH.shape[:2] == inputs["input_ids"].shape  # not per token
        return own(rows.aligned(hidden_BTH, places_BN) if selected else hidden_BTH, *args, **kwargs)

    if head is None:
        with rows.attending():
            return rows.aligned(model(**inputs, use_cache=False).logits, places_BN)
    own, before = head.forward, vars(head).get("forward")
    vars(head)["forward"] = forward  # in the head's own place, so that an engine gathers its weights for it
    try:
        with rows.attending():
            logits = model(**inputs, use_cache=False).logits
    finally:
        if before is None:
            del vars(head)["forward"]
        else:
            vars(head)["forward"] = before
    return logits if selected else rows.aligned(logits, places_BN)


def without_adapters(model: Any) -> Any:
    """A model without peft's wrapper; the adapters' layers are in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tensor(folder: Path, name: str) -> Tensor | None:
    """A tensor of a checkpoint's safetensors by its name, if it is there."""
    file, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        file = folder / json.loads(index.read_text())["weight_map"].get(name, WEIGHTS)
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118  (it is no mapping)

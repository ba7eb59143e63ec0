"""Draft heads (multi-token prediction): layers beside a model that guess its next tokens from its last hidden state.

They are no part of the module that transformers builds, which drops their weights. Here they are kept beside it:
:func:`attach` hangs them on a model without making them one of its submodules, so its own weights, their names and
their optimizer stay as they are without heads.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from mopd.distill.models.heads import WEIGHTS, plain_head, without_adapters
from mopd.distill.types import UserError

_EXPERT = re.compile(r"^(.*\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")


@dataclass(frozen=True, slots=True)
class DraftFamily:
    """How a family writes its draft layers; a row of :data:`DRAFT_FAMILIES`.

    Attributes:
        prefix: of a layer's tensors in a checkpoint; ``{number}`` counts draft layers from 0, ``{layer}`` goes on from
            the model's own layers.
        names: what a tensor of :class:`DraftLayer` begins with here, and in a checkpoint; the first that fits counts.
        config: keys of the configuration that a draft layer's block is built with, in place of the model's own.
        published: keys that the configuration of a checkpoint with n draft layers has, from n.
        copies: tensors of a draft layer that repeat the model's own, with their names in it: not read, and written.
        layer_type: the kind of attention of the block, where a family has several; what its rotary embedding is asked.
    """

    prefix: str
    names: tuple[tuple[str, str], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[str, ...] = ("num_nextn_predict_layers",)
    copies: tuple[tuple[str, str], ...] = ()
    layer_type: str | None = None


_AFTER_THE_LAST = DraftFamily(
    prefix="model.layers.{layer}.",
    names=(("norm.", "shared_head.norm."), ("block.", ""), ("", "")),
    config={"first_k_dense_replace": 0, "num_hidden_layers": 1},
    copies=(
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("shared_head.head.weight", "lm_head.weight"),
    ),
)

DRAFT_FAMILIES: dict[str, DraftFamily] = {
    # Report: arXiv 2601.02780. Names: the hub's checkpoint, as vLLM 0.32 reads it.
    "mimo_v2_flash": DraftFamily(
        prefix="model.mtp.layers.{number}.",
        names=(
            ("block.self_attn.sinks", "self_attn.attention_sink_bias"),
            ("block.post_attention_layernorm.", "pre_mlp_layernorm."),
            ("norm.", "final_layernorm."),
            ("block.", ""),
            ("", ""),
        ),
        config={"layer_types": ["sliding_attention"], "mlp_layer_types": ["dense"], "num_hidden_layers": 1},
        published=("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types"),
        layer_type="sliding_attention",
    ),
    # DeepSeek-V3 report, arXiv 2412.19437, section 2.2; GLM-4.5, arXiv 2508.06471.
    "deepseek_v3": _AFTER_THE_LAST,
    "glm4_moe": _AFTER_THE_LAST,
}
"""Families whose draft layers are known, by ``model_type``."""


def draft_family(config: Any) -> DraftFamily:
    """The row of a configuration's family.

    Raises:
        UserError: its draft layers are not known here.
    """
    if config.model_type not in DRAFT_FAMILIES:
        raise UserError(
            f"{config.model_type} has no draft heads that are known here (those of {', '.join(DRAFT_FAMILIES)} are); "
            "set `mtp.heads: 0`, or take a model of one of these families"
        )
    return DRAFT_FAMILIES[config.model_type]


class DraftLayer(nn.Module):
    """One draft layer: at position p it sees the hidden state of p and token p + 1, and says what token p + 2 is.

    Source: DeepSeek-V3 report, arXiv 2412.19437, section 2.2, eq 21 to 23.
    """

    def __init__(self, config: Any, block: type[nn.Module], norm: type[nn.Module]) -> None:
        super().__init__()
        width = config.hidden_size
        self.enorm, self.hnorm, self.norm = (norm(width, eps=config.rms_norm_eps) for _ in range(3))  # type: ignore
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.block = block(config, 0)  # type: ignore

    def forward(
        self, embedded_BTH: Tensor, hidden_BTH: Tensor, rotary: Any, mask: Tensor, positions_BT: Tensor, cache: Any
    ) -> Tensor:
        """The hidden state that the output head turns into the guess's logits, ``(B, T, H)``."""
        x_BTH = self.eh_proj(torch.cat([self.enorm(embedded_BTH), self.hnorm(hidden_BTH)], dim=-1))
        x_BTH = self.block(
            x_BTH,
            attention_mask=mask,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=rotary,
        )
        return self.norm(x_BTH)


class DraftHeads(nn.Module):
    """The draft layers of a model. Embedding, rotary embedding and output head are the model's own, without gradient.

    Args:
        model: a causal model of transformers, whose layers say what a draft layer is made of.
        count: of draft layers, at least 1.

    Raises:
        UserError: the family's draft layers are not known.
    """

    def __init__(self, model: Any, count: int) -> None:
        super().__init__()
        inner = without_adapters(model)
        self.config: Any = copy.deepcopy(inner.config.get_text_config())
        self.family = draft_family(self.config)
        self.trunk_layers: int = self.config.num_hidden_layers
        for name, value in self.family.config.items():
            setattr(self.config, name, value)
        if self.family.layer_type is not None:
            self.config._attn_implementation = "eager"  # sinks, and keys of one token at several depths
        decoder = inner.get_decoder()
        block, norm = type(decoder.layers[-1]), type(decoder.layers[-1].input_layernorm)
        self.layers = nn.ModuleList([DraftLayer(self.config, block, norm) for _ in range(count)])
        # In a tuple, which registers no submodule: they stay the model's.
        self._shared = (inner.get_input_embeddings(), getattr(decoder, "rotary_emb", None), plain_head(inner))

    @property
    def window(self) -> int | None:
        """Tokens that a draft layer's attention sees; None: all."""
        return self.config.sliding_window if self.family.layer_type == "sliding_attention" else None

    def initialise(self, seed: int) -> None:
        """Random weights keyed by ``seed``: matrices as the model's own begin, norms 1, sinks and biases 0."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if tensor.ndim >= 2:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * self.config.initializer_range)
                elif "norm" not in name:
                    tensor.zero_()

    def embed(self, token_ids_BT: Tensor) -> Tensor:
        """Embeddings of tokens, without gradient."""
        weight_VH = self._shared[0].weight.detach()
        return F.embedding(token_ids_BT, weight_VH).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model's output head makes of hidden states ``(..., H)``: ``(..., V)``; no gradient to the head."""
        return F.linear(hidden, self._shared[2].weight.detach().to(hidden.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of the draft layers' weights."""
        return next(self.parameters()).dtype

    def run(
        self, number: int, token_ids_BT: Tensor, hidden_BTH: Tensor, positions_BT: Tensor, mask: Tensor, cache: Any
    ) -> Tensor:
        """Layer ``number`` at tokens: hidden states ``(B, T, H)`` of its guesses.

        Args:
            token_ids_BT: the token after each position.
            hidden_BTH: of each position: the model's after its last norm, or the guess's of the layer before.
            positions_BT: of the hidden states.
            mask: what is added to attention scores, ``(B or 1, 1, T, keys)``.
            cache: whose ``update(keys, values, 0)`` returns the keys and values that are seen.
        """
        rotary = self._shared[1]
        embedded_BTH = self.embed(token_ids_BT)
        kind = () if self.family.layer_type is None else (self.family.layer_type,)
        embeddings = None if rotary is None else rotary(embedded_BTH, positions_BT, *kind)
        layer: Any = self.layers[number]
        return layer(embedded_BTH, hidden_BTH.to(self.dtype), embeddings, mask, positions_BT, cache)

    # ---- training

    def unroll(self, hidden_BTH: Tensor, token_ids_BT: Tensor, depth: int) -> list[Tensor]:
        """The first layer fed with itself, as it drafts: hidden states of the guesses at depths 1 to ``depth``.

        Row p of depth j guesses token ``p + 1 + j`` from the model's hidden state at p and the true tokens up to
        ``p + j``. Its query at depth j sees what it would see when it drafts: the depth-1 keys of positions up to p,
        and the keys of depths 2 to j of the same p.

        Source: training-time test, EAGLE-3, arXiv 2503.01840, section 3.2.

        Args:
            hidden_BTH: the model's, detached; sequences begin at 0 and are padded on the right.
            token_ids_BT: of the same positions.
        """
        B, T = token_ids_BT.shape
        device = token_ids_BT.device
        place_T, cache, g_BTH, made = torch.arange(T, device=device), _Appended(), hidden_BTH, list[Tensor]()
        seen_TK = torch.zeros(T, 0, dtype=torch.bool, device=device)
        for j in range(1, depth + 1):
            ids_BT = F.pad(token_ids_BT[:, j:], (0, min(j, T)))  # not per token: of the token j further on
            before_TT, same_TT = place_T[None] <= place_T[:, None], place_T[None] == place_T[:, None]
            fresh_TT = before_TT if j == 1 else same_TT
            seen_TK = torch.cat([seen_TK, fresh_TT], dim=1)
            depths_K = torch.arange(j, device=device).repeat_interleave(T)
            distance_TK = (place_T[:, None] + j - 1) - (place_T.repeat(j) + depths_K)[None]
            ok_TK = seen_TK if self.window is None else seen_TK & (distance_TK < self.window)
            positions_BT = (place_T + j - 1).expand(B, T)
            g_BTH = self.run(0, ids_BT, g_BTH, positions_BT, self.additive(ok_TK)[None, None], cache)
            made.append(g_BTH)
        return made

    def chain(self, first_BTH: Tensor, token_ids_BT: Tensor) -> list[Tensor]:
        """The further layers, each on the one before, as runtimes use them that know one layer a depth.

        Args:
            first_BTH: the first layer's at depth 1; it gets no gradient.

        Returns:
            Hidden states of layers 1, 2, ...; row p of layer i guesses token ``p + 2 + i``.
        """
        B, T = token_ids_BT.shape
        place_T = torch.arange(T, device=token_ids_BT.device)
        ok_TT = place_T[None] <= place_T[:, None]
        if self.window is not None:
            ok_TT &= place_T[:, None] - place_T[None] < self.window
        g_BTH, made = first_BTH.detach(), list[Tensor]()
        for i in range(1, len(self.layers)):
            ids_BT = F.pad(token_ids_BT[:, i + 1 :], (0, min(i + 1, T)))  # not per token
            g_BTH = self.run(i, ids_BT, g_BTH, place_T.expand(B, T), self.additive(ok_TT)[None, None], _Appended())
            made.append(g_BTH)
        return made

    def additive(self, ok: Tensor) -> Tensor:
        """A mask that is added to scores, from one that is True where a key is seen."""
        zero = torch.zeros((), dtype=self.dtype, device=ok.device)
        return torch.where(ok, zero, torch.finfo(self.dtype).min)

    # ---- a checkpoint's names

    def tensors(self) -> dict[str, Tensor]:
        """Every weight under the name that it has in a checkpoint of the family; experts one by one."""
        named: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            prefix = self._prefix(number)
            for name, tensor in layer.state_dict().items():
                here, there = next(pair for pair in self.family.names if name.startswith(pair[0]))
                for part, value in _apart(there + name.removeprefix(here), tensor.detach()):
                    named[prefix + part] = value
        return named

    def load(self, tensors: Mapping[str, Tensor], *, named: str | Path) -> None:
        """Take on weights under the names of a checkpoint; those of other parts of the model are passed over.

        Raises:
            UserError: one is missing, has no place, or another shape.
        """
        copies = {name for name, _ in self.family.copies}
        for number, layer in enumerate(self.layers):
            prefix = self._prefix(number)
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            together = _together({name: tensor for name, tensor in own.items() if name not in copies})
            state: dict[str, Tensor] = {}
            for name, needed in layer.state_dict().items():
                here, there = next(pair for pair in self.family.names if name.startswith(pair[0]))
                written = there + name.removeprefix(here)
                if written not in together:
                    raise UserError(
                        f"checkpoint {named} lacks {prefix}{written} of draft layer {number}; take a whole "
                        "checkpoint, or set `mtp.heads: 0`"
                    )
                value = together.pop(written)
                if value.shape != needed.shape:
                    raise UserError(
                        f"checkpoint {named}: {prefix}{written} is {list(value.shape)} and not {list(needed.shape)}, "
                        "which its config.json says; take the configuration that belongs to the weights"
                    )
                state[name] = value
            if together:
                raise UserError(
                    f"checkpoint {named} has {prefix}{sorted(together)[0]} and {len(together) - 1} more that a draft "
                    f"layer of {self.config.model_type} has no place for; set `mtp.heads: 0` to leave its heads out"
                )
            layer.load_state_dict(state)

    def published(self) -> dict[str, Any]:
        """Keys of the exported configuration that say that there are draft layers."""
        values: dict[str, Any] = {
            "num_nextn_predict_layers": len(self.layers),
            "num_mtp_layers": len(self.layers),
            "mtp_layer_types": [self.family.layer_type] * len(self.layers),
            "mtp_mlp_layer_types": self.family.config.get("mlp_layer_types", []) * len(self.layers),
        }
        return {name: values[name] for name in self.family.published}

    def with_copies(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint: the model's ``state``, the draft layers, and what those repeat of the model."""
        whole = {**state, **{name: tensor.to("cpu") for name, tensor in self.tensors().items()}}
        for number in range(len(self.layers)):
            for name, own in self.family.copies:
                if own in state:
                    whole[self._prefix(number) + name] = state[own].clone()
        return whole

    def _prefix(self, number: int) -> str:
        return self.family.prefix.format(number=number, layer=self.trunk_layers + number)


def attach(model: Any, heads: DraftHeads | None) -> None:
    """Hang draft heads on a model, or take them off; they are no submodule of it."""
    vars(without_adapters(model))["mopd_draft_heads"] = heads


def draft_heads(model: Any) -> DraftHeads | None:
    """The draft heads that hang on a model."""
    return vars(without_adapters(model)).get("mopd_draft_heads")


def count_heads(names: Iterable[str], config: Any) -> int:
    """How many draft layers a checkpoint of this family holds, told from its tensors' names."""
    family = DRAFT_FAMILIES.get(config.model_type)
    if family is None:
        return 0
    written = set(names)
    count = 0
    while family.prefix.format(number=count, layer=config.num_hidden_layers + count) + "eh_proj.weight" in written:
        count += 1
    return count


def is_head_tensor(name: str, config: Any) -> bool:
    """Whether a tensor of a checkpoint belongs to its draft layers."""
    family = DRAFT_FAMILIES.get(config.model_type)
    if family is None:
        return False
    if "{number}" in family.prefix:
        return name.startswith(family.prefix.partition("{number}")[0])
    match = re.match(re.escape(family.prefix).replace(re.escape("{layer}"), r"(\d+)"), name)
    return match is not None and int(match[1]) >= config.num_hidden_layers


def heads_of_checkpoint(path: str | Path, model: Any) -> DraftHeads | None:
    """The draft heads that a checkpoint holds, in the model's dtype and on its device; None where it holds none.

    Args:
        path: a folder, or a Hub id that has been downloaded.
        model: loaded from it.

    Raises:
        UserError: they are not whole.
    """
    config = without_adapters(model).config.get_text_config()
    if config.model_type not in DRAFT_FAMILIES:
        return None
    files = _names_by_file(_folder(path))
    names = {name for of_file in files.values() for name in of_file}
    count = count_heads(names, config)
    if count == 0:
        return None
    tensors: dict[str, Tensor] = {}
    for file, of_file in files.items():
        wanted = [name for name in of_file if is_head_tensor(name, config)]
        if wanted:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in wanted}
    heads = DraftHeads(model, count)
    heads.load(tensors, named=path)
    parameter = next(model.parameters())
    return heads.to(device=parameter.device, dtype=parameter.dtype).eval()


def make_heads(path: str | Path, model: Any, count: int, *, seed: int) -> DraftHeads:
    """``count`` draft layers for a model: those of its checkpoint, or random ones where it has none.

    Raises:
        UserError: the checkpoint has some, and not as many; or the family's are not known.
    """
    draft_family(without_adapters(model).config.get_text_config())
    heads = heads_of_checkpoint(path, model)
    if heads is None:
        heads = DraftHeads(model, count)
        heads.initialise(seed)
        parameter = next(model.parameters())
        return heads.to(device=parameter.device, dtype=parameter.dtype)
    if len(heads.layers) != count:
        raise UserError(
            f"checkpoint {path} has {len(heads.layers)} draft layers and `mtp.heads` is {count}; set it to "
            f"{len(heads.layers)}, or to 0 to leave them out"
        )
    return heads


def attached(path: str | Path, model: Any) -> Any:
    """A loaded model with the draft heads of its checkpoint, if that has any."""
    attach(model, heads_of_checkpoint(path, model))
    return model


class _Appended:
    """Keys and values of one layer, each further depth beside those before."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self._kept:
            self._kept = [torch.cat([old, new], dim=2) for old, new in zip(self._kept, (keys, values), strict=True)]
        else:
            self._kept = [keys, values]
        return self._kept[0], self._kept[1]


def _folder(path: str | Path) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), local_files_only=True))


def _names_by_file(folder: Path) -> dict[Path, Sequence[str]]:
    """The names of a checkpoint's tensors by the safetensors file that holds them."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        files: dict[Path, list[str]] = {}
        for name, file in json.loads(index.read_text())["weight_map"].items():
            files.setdefault(folder / file, []).append(name)
        return {**files}
    if not (folder / WEIGHTS).is_file():
        return {}
    with safe_open(folder / WEIGHTS, framework="pt") as opened:
        return {folder / WEIGHTS: list(opened.keys())}


def _apart(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor of all experts as a checkpoint has it, an expert at a time; any other as it is."""
    stem, of_experts, what = name.rpartition("experts.")
    if not of_experts or what not in ("gate_up_proj", "down_proj"):
        return [(name, tensor)]
    parts = {"down_proj": tensor}
    if what == "gate_up_proj":
        gate, up = tensor.chunk(2, dim=1)
        parts = {"gate_proj": gate, "up_proj": up}
    return [
        (f"{stem}experts.{e}.{part}.weight", value[e].contiguous())
        for part, value in parts.items()
        for e in range(len(value))
    ]


def _together(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`_apart`, of whatever experts there are."""
    whole: dict[str, Tensor] = {}
    experts: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.match(name)
        if match is None:
            whole[name] = tensor
        else:
            experts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = tensor
    for stem, parts in experts.items():
        stacked = {what: torch.stack([by_expert[e] for e in sorted(by_expert)]) for what, by_expert in parts.items()}
        if {"gate_proj", "up_proj"} <= stacked.keys():
            whole[f"{stem}gate_up_proj"] = torch.cat([stacked["gate_proj"], stacked["up_proj"]], dim=1)
        if "down_proj" in stacked:
            whole[f"{stem}down_proj"] = stacked["down_proj"]
    return whole

"""Draft heads beside a model: names in a checkpoint, in and out; what they see; transformers' own as an oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from student_kit import _COMMON, _EXPERTS, make_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from mopd.distill.models.load import load_whole
from mopd.distill.models.mtp import (
    DRAFT_FAMILIES,
    DraftHeads,
    attach,
    count_heads,
    draft_heads,
    heads_of_checkpoint,
    is_head_tensor,
    make_heads,
)
from mopd.distill.student.checkpoint import export_hf
from mopd.distill.types import UserError

HUB_TENSORS = {
    "enorm.weight": (32,),
    "hnorm.weight": (32,),
    "eh_proj.weight": (32, 64),
    "input_layernorm.weight": (32,),
    "self_attn.q_proj.weight": (32, 32),
    "self_attn.k_proj.weight": (16, 32),
    "self_attn.v_proj.weight": (16, 32),
    "self_attn.o_proj.weight": (32, 32),
    "self_attn.attention_sink_bias": (4,),
    "pre_mlp_layernorm.weight": (32,),
    "mlp.gate_proj.weight": (64, 32),
    "mlp.up_proj.weight": (64, 32),
    "mlp.down_proj.weight": (32, 64),
    "final_layernorm.weight": (32,),
}
"""The 14 tensors of a draft layer of MiMo-V2-Flash, as vLLM's mimo_v2_mtp.py names them, at the tiny model's sizes."""


def loaded(path: str | Path) -> Any:
    return load_whole(path, dtype=torch.float32).eval()


def with_hub_heads(folder: Path, count: int = 3) -> tuple[str, dict[str, Tensor]]:
    """A tiny MiMo whose file holds draft layers under the hub's names, written by safetensors alone."""
    path = Path(make_model(folder))
    generator = torch.Generator().manual_seed(5)
    heads = {
        f"model.mtp.layers.{i}.{name}": 0.1 * torch.randn(shape, generator=generator)
        for i in range(count)
        for name, shape in HUB_TENSORS.items()
    }
    save_file({**load_file(path / "model.safetensors"), **heads}, path / "model.safetensors", metadata={"format": "pt"})
    return str(path), heads


def glm(folder: Path) -> str:
    """A tiny GLM-4.5 of 46 layers, the depth behind which transformers looks for draft layers."""
    settings = {**_COMMON, **_EXPERTS, "num_hidden_layers": 46, "first_k_dense_replace": 46, "n_routed_experts": 4}
    settings |= {"num_key_value_heads": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_mtp_layers": 1}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("glm4_moe", **settings)).save_pretrained(folder / "glm")
    return str(folder / "glm")


def exported(model: Any, heads: DraftHeads, source: str, path: Path) -> Path:
    state = heads.with_copies({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    export_hf(path, state_dict=state, model=model, source=source, published=heads.published())
    return path


def on_disk(path: Path) -> dict[str, Tensor]:
    with safe_open(path / "model.safetensors", framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def test_hub_named_heads_go_in_and_out_bit_by_bit(tmp_path: Path) -> None:
    source, hub = with_hub_heads(tmp_path)
    model = loaded(source)
    heads = heads_of_checkpoint(source, model)
    assert heads is not None
    assert len(heads.layers) == 3
    path = exported(model, heads, source, tmp_path / "out")
    written, original = on_disk(path), on_disk(Path(source))
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(written[name], tensor), name
    config = json.loads((path / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == config["num_mtp_layers"] == 3
    again = heads_of_checkpoint(path, loaded(path))
    assert again is not None
    assert set(again.tensors()) == set(hub)


@pytest.mark.parametrize("family", ["mimo_v2_flash", "deepseek_v3"])
def test_new_heads_survive_a_checkpoint(tmp_path: Path, family: str) -> None:
    source = make_model(tmp_path, family)
    model = loaded(source)
    assert heads_of_checkpoint(source, model) is None
    heads = make_heads(source, model, 2, seed=1)
    path = exported(model, heads, source, tmp_path / "out")
    again = make_heads(path, loaded(path), 2, seed=9)
    for name, tensor in heads.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name
    names = on_disk(path)
    assert count_heads(names, model.config) == 2
    ours = {name for name in names if is_head_tensor(name, model.config)}
    assert {name for name in names if name not in on_disk(Path(source))} == ours
    for name, own in DRAFT_FAMILIES[family].copies:
        assert torch.equal(names[f"model.layers.3.{name}"], names[own])


def test_a_model_with_heads_is_the_model_without(tmp_path: Path) -> None:
    source = make_model(tmp_path)
    model = loaded(source)
    before = dict(model.state_dict())
    attach(model, make_heads(source, model, 2, seed=1))
    assert draft_heads(model) is not None
    assert model.state_dict().keys() == before.keys()
    assert len(list(model.modules())) == len(list(loaded(source).modules()))
    attach(model, None)
    assert draft_heads(model) is None


def naive_draft(heads: DraftHeads, hidden_TH: Tensor, ids: list[int], p: int, depth: int) -> list[Tensor]:
    """Straight from the definition: the layer over positions 0..p, then over its own output, one token at a time, with
    all keys kept; returns its hidden state at each depth."""

    class Kept:
        def __init__(self) -> None:
            self.pair: tuple[Tensor, Tensor] | None = None

        def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            new = keys, values
            self.pair = new if self.pair is None else tuple(torch.cat(x, 2) for x in zip(self.pair, new, strict=True))  # type: ignore
            assert self.pair is not None
            return self.pair

    def mask(queries: list[int], keys: list[int]) -> Tensor:
        ok = [[k <= q and (heads.window is None or q - k < heads.window) for k in keys] for q in queries]
        return heads.additive(torch.tensor(ok))[None, None]

    cache, places = Kept(), list(range(p + 1))
    g = heads.run(
        0, torch.tensor([ids[1 : p + 2]]), hidden_TH[None, : p + 1], torch.tensor([places]), mask(places, places), cache
    )[:, -1:]
    made = [g[0, 0]]
    for j in range(2, depth + 1):
        at = p + j - 1
        g = heads.run(0, torch.tensor([[ids[p + j]]]), g, torch.tensor([[at]]), mask([at], list(range(at + 1))), cache)
        made.append(g[0, 0])
    return made


@pytest.mark.parametrize("family", ["mimo_v2_flash", "deepseek_v3"])
def test_training_sees_what_drafting_sees(tmp_path: Path, family: str) -> None:
    """Sequences longer than the window of 6, two of them, padded to one length."""
    source = make_model(tmp_path, family)
    model = loaded(source)
    heads = make_heads(source, model, 1, seed=1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(2, 64, (2, 13), generator=generator)
    hidden_BTH = torch.randn(2, 13, 32, generator=generator)
    with torch.no_grad():
        unrolled = heads.unroll(hidden_BTH, ids_BT, 3)
        for row in range(2):
            for p in range(13 - 4):
                for j, expected_H in enumerate(naive_draft(heads, hidden_BTH[row], ids_BT[row].tolist(), p, 3)):
                    torch.testing.assert_close(unrolled[j][row, p], expected_H, atol=1e-5, rtol=1e-5)


def test_heads_are_transformers_own_where_it_has_them(tmp_path: Path) -> None:
    """GLM-4.5: the checkpoint written here is loaded by transformers' MtpModel, whose layer gives the same, and
    `generate(use_mtp=True)` writes what it writes without."""
    source = glm(tmp_path)
    model = loaded(source)
    heads = make_heads(source, model, 1, seed=4)
    path = exported(model, heads, source, tmp_path / "out")
    model = loaded(path)
    theirs = MtpModel.from_pretrained(model).eval()
    ids_BT = torch.randint(2, 64, (1, 9), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        own = heads.unroll(hidden_BTH, ids_BT, 1)[0][:, :-1]
        places = torch.arange(8)[None]
        layer: Any = theirs.layers[0]
        expected = layer(
            inputs_embeds=model.model.embed_tokens(ids_BT[:, 1:]),
            previous_hidden_state=hidden_BTH[:, :-1],
            position_embeddings=model.model.rotary_emb(hidden_BTH, places),
            attention_mask=torch.full((8, 8), torch.finfo(torch.float32).min).triu(1)[None, None],
            position_ids=places,
            past_key_values=None,
        )
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    plain, drafted = (
        model.generate(ids_BT, max_new_tokens=12, do_sample=False, use_mtp=use, pad_token_id=0) for use in (False, True)
    )
    assert plain.tolist() == drafted.tolist()


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    llama = make_model(tmp_path, "llama")
    with pytest.raises(UserError, match=r"llama has no draft heads .*mimo_v2_flash, deepseek_v3, glm4_moe"):
        make_heads(llama, loaded(llama), 1, seed=0)
    source, hub = with_hub_heads(tmp_path, count=2)
    with pytest.raises(UserError, match=r"has 2 draft layers and `mtp.heads` is 3; set it to 2"):
        make_heads(source, loaded(source), 3, seed=0)
    model = loaded(source)
    heads = DraftHeads(model, 2)
    name = "model.mtp.layers.1.self_attn.attention_sink_bias"
    for changed, culprit in (
        ({key: tensor for key, tensor in hub.items() if key != name}, f"lacks {name}"),
        ({**hub, name: torch.zeros(5)}, rf"{name} is \[5\] and not \[4\]"),
        (
            {**hub, "model.mtp.layers.0.router.weight": torch.zeros(5)},
            r"has model.mtp.layers.0.router.weight and 0 more",
        ),
    ):
        with pytest.raises(UserError, match=culprit):
            heads.load(changed, named="x")

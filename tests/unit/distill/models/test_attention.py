"""Attention by blocks: against a loop over pairs, against transformers' eager attention, and how large it grows."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.attention import (
    BLOCK,
    LONG,
    LONG_TOKENS,
    BlockMask,
    attention_offer,
    block_attention,
    chosen_attention,
    set_attention,
)
from mopd.distill.types import UserError

WINDOW = 5
TOKENS = 40  # of a vocabulary
TOLERANCE = 1e-5  # float32


def causal(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key <= query


def naive(q: Any, k: Any, v: Any, sinks: Any, *, seen: Any, scaling: float) -> torch.Tensor:
    """A softmax with a sink, for every query by itself, over the keys that it sees."""
    batch, heads, queries, _ = q.shape
    rows = []
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // k.shape[1])
            for t in range(queries):
                keys = [j for j in range(k.shape[2]) if seen(b, t, j)]
                scores = [(q[b, h, t] @ k[b, shared, j]) * scaling for j in keys]
                total = sum(score.exp() for score in scores) + (0 if sinks is None else sinks[h].exp())
                rows.append(sum(s.exp() / total * v[b, shared, j] for s, j in zip(scores, keys, strict=True)))
    return torch.stack(rows).view(batch, heads, queries, -1)


@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize("queries", [1, WINDOW - 1, WINDOW, WINDOW + 1, 9])
def test_a_softmax_over_the_window_and_its_gradients(queries: int, with_sinks: bool, monkeypatch: Any) -> None:
    """In float64, blocks of 4, four heads over two key heads, values of another width, keys from before the queries."""
    monkeypatch.setattr("mopd.distill.models.attention.BLOCK", 4)
    torch.manual_seed(queries)
    before = 3
    draw = {"dtype": torch.float64, "requires_grad": True}
    q = torch.randn(2, 4, queries, 6, **draw)
    k, v = (torch.randn(2, 2, before + queries, width, **draw) for width in (6, 3))
    sinks = torch.randn(4, **draw) if with_sinks else None

    def visible(b: Any, h: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key > query - WINDOW)

    mask = BlockMask(visible, 2, queries, before + queries, before, 0, WINDOW, torch.device("cpu"))
    out = block_attention(q, k, v, mask=mask, scaling=0.4, sinks=sinks)
    given = [t for t in (q, k, v, sinks) if t is not None]

    def seen(b: int, t: int, j: int) -> bool:
        return bool(visible(b, 0, t + before, j))

    expected = naive(q, k, v, sinks, seen=seen, scaling=0.4)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    for own, reference in zip(
        torch.autograd.grad((out * weights).sum(), given),
        torch.autograd.grad((expected * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-12)


def tiny(family: str, *, window: int = WINDOW, **more: Any) -> Any:
    """A model of three layers, sliding and global, with large weights so that attention is far from uniform."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "sliding_window": window,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 2048, "initializer_range": 0.2, "pad_token_id": 0,
    }  # fmt: skip
    moe = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
    settings |= {
        "mimo_v2_flash": {"n_routed_experts": 4, "v_head_dim": 4, **moe},
        "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
        "llama": {},
    }[family] | more
    if family == "llama":
        del settings["layer_types"], settings["sliding_window"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def both(model: Any) -> tuple[Any, Any]:
    """The model by blocks, and its eager copy."""
    banded = copy.deepcopy(model)
    set_attention(banded, "banded", named="it")
    return banded, model


def close(own: Any, reference: Any, where: torch.Tensor, **inputs: Any) -> None:
    """Logits at the given positions, and the gradients of every weight of a loss on them, each against its scale."""
    pairs = []
    for model in (own, reference):
        logits = model(**inputs, use_cache=False).logits
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(logits.shape, generator=generator) * where[..., None]
        model.zero_grad()
        (logits * weights).sum().backward()
        pairs.append((logits.detach() * where[..., None], {n: p.grad for n, p in model.named_parameters()}))
    (logits, gradients), (expected, reference_gradients) = pairs
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert any(name.endswith("sinks") for name in gradients) == hasattr(own.model.layers[0].self_attn, "sinks")
    for name, gradient in reference_gradients.items():
        if gradient is None:
            assert gradients[name] is None
            continue
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=3 * TOLERANCE * scale, msg=name)


@pytest.mark.parametrize("tokens", [2, WINDOW - 1, WINDOW, WINDOW + 1, BLOCK - 1, BLOCK + 3, 2 * BLOCK + 7])
def test_a_model_computes_what_the_eager_one_does(tokens: int) -> None:
    """Values and gradients, those of the sinks too; padded at the left, at the right, and not at all."""
    own, reference = both(tiny("mimo_v2_flash"))
    ids = torch.randint(1, TOKENS, (3, tokens))
    mask = torch.ones_like(ids)
    mask[0, : tokens // 3] = 0
    mask[1, tokens - tokens // 3 :] = 0
    close(own, reference, mask, input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3", "llama"])
def test_other_families_do_too(family: str) -> None:
    own, reference = both(tiny(family))
    ids = torch.randint(1, TOKENS, (2, 150))
    mask = torch.ones_like(ids)
    mask[0, :70] = 0
    close(own, reference, mask, input_ids=ids, attention_mask=mask)


def test_packed_rows_do_not_see_each_other() -> None:
    """Three sequences in one row, as positions that begin again say: as the eager one, and as each by itself."""
    own, reference = both(tiny("mimo_v2_flash"))
    lengths = (3, 140, 20)
    ids = torch.randint(1, TOKENS, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    close(own, reference, torch.ones_like(ids), input_ids=ids, position_ids=positions)
    packed = own(input_ids=ids, position_ids=positions, use_cache=False).logits.detach()
    alone = [own(input_ids=part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=TOLERANCE * float(packed.abs().max()))


def test_a_prompt_and_what_follows_with_a_cache() -> None:
    """Prefill in two parts and then token by token, left-padded, as one forward of all."""
    own, reference = both(tiny("mimo_v2_flash"))
    ids = torch.randint(1, TOKENS, (2, 60))
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = reference(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    cache, logits, seen = None, [], 0
    for part in (30, 20, *[1] * 10):
        end = seen + part
        at = slice(seen, end)
        step = own(
            input_ids=ids[:, at], attention_mask=mask[:, :end], position_ids=positions[:, at], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache, seen = step.past_key_values, end
        logits.append(step.logits)
    together = torch.cat(logits, 1) * mask[..., None]
    scale = float(expected.abs().max())
    torch.testing.assert_close(together, expected * mask[..., None], rtol=0, atol=TOLERANCE * scale)


def test_bfloat16_is_as_near_as_its_rounding() -> None:
    own, reference = both(tiny("mimo_v2_flash"))
    ids = torch.randint(1, TOKENS, (2, 150))
    expected = reference(input_ids=ids).logits
    rounded = own.to(torch.bfloat16)(input_ids=ids).logits.float()
    eager = copy.deepcopy(reference).to(torch.bfloat16)(input_ids=ids).logits.float()
    assert (rounded - expected).abs().mean() <= 1.2 * (eager - expected).abs().mean()


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation makes."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_no_tensor_has_an_entry_for_each_pair_of_tokens() -> None:
    """Neither of masks nor of scores, forward or backward, in a model whose layers all slide; the eager one has."""
    tokens = 1024
    all_slide = {"layer_types": ["sliding_attention"] * 3}
    own, reference = both(tiny("mimo_v2_flash", window=16, **all_slide))
    ids = torch.randint(1, TOKENS, (1, tokens))
    most = []
    for model in (own, reference):
        with Largest() as largest:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.sum().backward()
        most.append(largest.entries)
    assert most[0] < tokens * tokens / 4 < tokens * tokens <= most[1]


def test_a_global_layer_has_none_either() -> None:
    own, _ = both(tiny("mimo_v2_flash", window=16))
    tokens = 1024
    ids = torch.randint(1, TOKENS, (1, tokens))
    with Largest() as largest:
        own(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.sum().backward()
    heads = own.config.num_attention_heads
    assert largest.entries < heads * tokens * tokens / 2


# ---- what is chosen


def test_auto_is_bitwise_transformers_own_up_to_a_length_and_blocks_from_there(monkeypatch: Any) -> None:
    model = tiny("mimo_v2_flash")
    auto = copy.deepcopy(model)
    set_attention(auto, "auto", named="it")
    assert auto.config._attn_implementation == LONG
    calls: list[int] = []
    monkeypatch.setattr(
        "mopd.distill.models.attention.block_attention",
        lambda q, *a, **k: (calls.append(q.shape[2]), block_attention(q, *a, **k))[1],
    )
    short, long = (torch.randint(1, TOKENS, (2, n)) for n in (LONG_TOKENS - 1, LONG_TOKENS))
    mask = torch.ones_like(short)
    mask[0, :50] = 0
    close(auto, model, mask, input_ids=short, attention_mask=mask)
    assert torch.equal(auto(short, attention_mask=mask).logits, model(short, attention_mask=mask).logits)
    for name, gradient in ((n, p.grad) for n, p in auto.named_parameters()):
        assert gradient is None or torch.equal(gradient, model.get_parameter(name).grad)
    assert calls == []
    close(auto, model, torch.ones_like(long), input_ids=long)
    assert calls == [LONG_TOKENS] * 3


def test_auto_leaves_alone_what_transformers_computes_well() -> None:
    for family in ("qwen3", "llama"):
        model = tiny(family)
        model.set_attn_implementation("sdpa")
        set_attention(model, "auto", named="it")
        assert model.config._attn_implementation == "sdpa"


def test_masks_of_the_callers_own_go_to_the_family_itself() -> None:
    own, reference = both(tiny("mimo_v2_flash"))
    ids = torch.randint(1, TOKENS, (1, 9))
    pairs = torch.ones(9, 9).tril().bool()[None, None]
    mask = torch.where(pairs, 0.0, torch.finfo(torch.float32).min)
    masks = {"full_attention": mask, "sliding_attention": mask}
    results = [m(input_ids=ids, attention_mask=masks, use_cache=False).logits for m in (own, reference)]
    assert torch.equal(*results)


def test_tokens_that_see_ahead_are_not_cut_into_blocks() -> None:
    """An image's tokens see each other; a mask that says so is built whole."""
    from transformers.masking_utils import create_causal_mask

    own, _ = both(tiny("mimo_v2_flash"))
    hidden = torch.zeros(1, 6, 32)
    image = torch.tensor([[-1, 0, 0, 0, -1, -1]])
    settings = {"config": own.config, "inputs_embeds": hidden, "attention_mask": None, "past_key_values": None}
    assert isinstance(create_causal_mask(**settings), BlockMask)
    mask = create_causal_mask(**settings, block_sequence_ids=image)
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0, 1, 3] == 0 > mask[0, 0, 0, 1]


def test_what_a_family_cannot_have_is_refused_by_name() -> None:
    offer = attention_offer(tiny("mimo_v2_flash"))
    assert set(offer.offered) == {"auto", "eager", "banded"}
    assert "mimo_v2_flash" in offer.refused["sdpa"]
    assert str(LONG_TOKENS) in offer.offered["auto"]
    dropping = tiny("mimo_v2_flash", attention_dropout=0.1)
    with pytest.raises(UserError, match=r"attention_dropout` is 0\.1"):
        set_attention(dropping, "banded", named="it")
    set_attention(dropping, "auto", named="it")
    assert chosen_attention(dropping) == "eager"
    capped = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
                             num_key_value_heads=1, intermediate_size=16, vocab_size=TOKENS)
    )  # fmt: skip
    with pytest.raises(UserError, match="softcapping"):
        set_attention(capped, "banded", named="it")


def test_the_choice_is_not_exported(tmp_path: Any) -> None:
    model = tiny("mimo_v2_flash")
    set_attention(model, "banded", named="it")
    model.save_pretrained(tmp_path)
    assert "banded" not in (tmp_path / "config.json").read_text()


def test_a_row_without_any_key_is_finite() -> None:
    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    k = torch.randn(1, 2, 3, 4)

    def nothing(b: Any, h: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key > 0)  # the first query sees nothing

    mask = BlockMask(nothing, 1, 3, 3, 0, 0, None, torch.device("cpu"))
    out = block_attention(q, k, k, mask=mask, scaling=1.0, sinks=None)
    out.sum().backward()
    assert out.isfinite().all()
    assert q.grad is not None
    assert q.grad.isfinite().all()
    assert math.isfinite(float(out.sum()))

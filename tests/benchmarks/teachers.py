"""What teachers cost: a step's scores from 1, 2, 4 and 8 of them, what each ships of a token, adapters over one base.

Teachers are real: in processes of their own, each of one thread, behind the pool of a run. Their seconds depend on the
cores that are free; tokens and bytes do not.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.payload_rows import PAYLOADS, RowSizes
from mopd.distill.payloads import Support, likeliest, payload_bytes
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import PayloadName, Prompt, Rollout, ScoredRollout
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions
from tests.unit.adapter_kit import wide_bytes

COUNTS = (1, 2, 4, 8)
ROLLOUTS, TOKENS, MICROBATCH_TOKENS = 64, 128, 2048
STEPS = 5
TEACHER = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VOCABULARY, HIDDEN, K = 151936, 2048, 64
WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
FORCED = 3
RANKS = (8, 16)


def _save(folder: Path, config: dict[str, Any], *, seed: int, dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(seed)
    settings = {**config, "eos_token_id": 1, "bos_token_id": None}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=dtype).save_pretrained(folder)
    return str(folder)


def _rollouts(domains: int) -> list[Rollout]:
    """The same rollouts, whatever the number of domains that they are dealt to."""
    rng = np.random.default_rng(0)
    dealt = []
    for i in range(ROLLOUTS):
        ids, mask = rng.integers(2, TEACHER["vocab_size"], TOKENS).astype(np.int32), np.arange(TOKENS) >= TOKENS // 4
        prompt = Prompt(f"d{i % domains}", str(i), tuple(ids[~mask].tolist()), "", "")
        zeros = np.zeros(TOKENS, dtype=np.float32)
        dealt.append(Rollout(prompt, ids, mask, zeros, "length", version=(0, 0), group=i, index=i))
    return dealt


def _tokens(scored: list[ScoredRollout]) -> int:
    return sum(len(one.rollout.token_ids) for one in scored for _ in one.scores)


def routed(folder: Path) -> dict[str, dict[str, float]]:
    """Tokens scored in a step, and the median seconds that it takes, by the number of teachers that share it."""
    paths = [_save(folder / f"teacher-{i}", TEACHER, seed=i) for i in range(max(COUNTS))]
    conditions, figures = Conditions(1.0, MICROBATCH_TOKENS), dict[str, dict[str, float]]()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for count in COUNTS:
        sources = {f"d{i}": Checkpoint(path, "cpu", "float32") for i, path in enumerate(paths[:count])}
        pool = TeacherPool(
            {name: TeacherSpec(source, conditions, 0.0, 1) for name, source in sources.items()},
            routes={name: {name: 1.0} for name in sources},
            payload="sampled",
            faults=FaultRecipe(),
            say=print,
        )
        pool.wait_until_ready()
        batch, taken, scored = _rollouts(count), list[float](), list[ScoredRollout]()
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            scored = pool.score([batch])
            taken.append(time.perf_counter() - start)
        pool.close()
        figures[str(count)] = {"tokens": float(_tokens(scored)), "seconds": statistics.median(taken[1:])}
        assert _tokens(scored) == ROLLOUTS * TOKENS, f"{count} teachers scored {_tokens(scored)} tokens"
    ray.shutdown()
    return figures


def shipped(folder: Path) -> dict[str, float]:
    """Bytes of a token in what a teacher of a real vocabulary answers, by payload."""
    path = _save(folder / "wide", WIDE, seed=0, dtype=torch.bfloat16)
    ids, found = np.arange(2, 34, dtype=np.int32), dict[str, float]()
    kinds: tuple[tuple[str, PayloadName, Support | None], ...] = (
        ("sampled", "sampled", None),
        (f"topk, {K} of the teacher", "topk", Support(K, tuple(range(FORCED)))),
        (f"topk, union with {K} of the student", "topk", Support(K, tuple(range(FORCED)), "union")),
        ("hidden, bfloat16", "hidden", None),
        ("full", "full", None),
    )
    teacher = TeacherModel(path, device="cpu", dtype="bfloat16", temperature=1.0, microbatch_tokens=64)
    for name, payload, support in kinds:
        teacher.support = support
        given = None
        if support is not None and support.given:
            given = [likeliest(torch.randn(len(ids), VOCABULARY), support).numpy().astype(np.int32)]
        (said,) = teacher.score([ids], payload, None, given)
        found[name] = payload_bytes(said) / len(ids)
        width = 0 if support is None else K * (2 if support.given else 1) + FORCED
        planned = PAYLOADS[payload].row_bytes(
            RowSizes(vocabulary=VOCABULARY, hidden=HIDDEN, support=width, value_bytes=2)
        )
        assert found[name] == planned, f"{name}: {found[name]} bytes a token, {planned} were planned"
    return found


def adapters(folder: Path) -> dict[str, float]:
    """Parameter bytes of a base with four adapters over those of the base alone, by the adapters' rank."""
    figures = {}
    for rank in RANKS:
        alone, held = wide_bytes(folder / f"rank-{rank}", rank=rank)
        figures[str(rank)] = held / alone
    return figures


def measure() -> dict[str, Any]:
    """All three."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {"routed": routed(folder), "shipped_bytes": shipped(folder), "four_adapters": adapters(folder)}


def tables(figures: dict[str, Any]) -> list[Table]:
    """What :func:`measure` gives, for a person."""
    routes = Table(
        "teachers", "tokens", "seconds", "ratio", title=f"scores of {ROLLOUTS} rollouts of {TOKENS} tokens, each by one"
    )
    one = figures["routed"]["1"]["seconds"]
    for count, row in figures["routed"].items():
        routes.add_row(count, f"{row['tokens']:.0f}", f"{row['seconds']:.3g}", f"{row['seconds'] / one:.2f}")
    bytes_ = Table("payload", "bytes a token", title=f"shipped, vocabulary {VOCABULARY}, hidden size {HIDDEN}")
    for name, count in figures["shipped_bytes"].items():
        bytes_.add_row(name, f"{count:,.0f}")
    memory = Table("rank", "base + 4 over base", title="LoRA on all matrices of Qwen3-0.6B's layers, parameter bytes")
    for rank, ratio in figures["four_adapters"].items():
        memory.add_row(rank, f"{ratio:.3f}")
    return [routes, bytes_, memory]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=2))

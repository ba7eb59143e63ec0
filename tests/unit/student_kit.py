"""Tiny students, and batches of rollouts with teacher scores, for the tests of the training engine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.recipe import AdamW, Engine, FullReverseKL, PlainSGD
from mopd.distill.student import engine
from mopd.distill.student.driver import DeepSpeedStudent, Ranks
from mopd.distill.student.rank import StudentRank
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import Full, Prompt, Rollout, ScoredRollout, TeacherScore

SGD = PlainSGD(lr=0.5, warmup_steps=2, clip=0.05)
ADAMW = AdamW(lr=1e-2, warmup_steps=2, clip=0.05)
STEP = PlainSGD(lr=0.5, warmup_steps=0, clip=0.0, schedule="constant")
TEMPERATURE = 0.7
SHARES = {"code": 1.0, "math": 2.0, "reasoning": 1.0}
VOCABULARY = 64
DOMAINS = ("code", "math", "reasoning")
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "mimo_v2_flash": {
        **_EXPERTS,
        "n_routed_experts": 4,
        "v_head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **_EXPERTS,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "head_dim": 4,  # of the rotary part
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "llama": {},
    "qwen3": {},
}
DENSE = ("llama", "qwen3")


def make_model(folder: Path, family: str = "mimo_v2_flash", *, seed: int = 0) -> str:
    """Save a tiny random model; sinks and correction biases are given values, so that losing them shows."""
    path = folder / f"{family}-{seed}"
    if path.exists():
        return str(path)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dtype == torch.float32 and "inv_freq" not in name:
                tensor.add_(0.05 * torch.randn_like(tensor))
    model.save_pretrained(path)
    return str(path)


def make_rollout(rng: np.random.Generator, index: int, domain: str, *, prompt: int, completion: int) -> Rollout:
    """A rollout of random tokens."""
    ids = rng.integers(2, VOCABULARY, prompt + completion).astype(np.int32)
    mask = np.arange(len(ids)) >= prompt
    return Rollout(
        prompt=Prompt(domain, f"{domain}/{index}", tuple(ids[:prompt].tolist()), "question", "answer"),
        token_ids=ids,
        loss_mask=mask,
        sampler_logprobs=np.where(mask, -np.float32(3.0), np.float32(0)).astype(np.float32),
        finish="length",
        version=(0, 0),
        group=index,
        index=index,
    )


def make_batch(
    *, per_domain: int = 4, seed: int = 0, sharpness: float = 1.0, vocabulary: int = VOCABULARY
) -> list[ScoredRollout]:
    """Rollouts of very unequal lengths, with a random teacher's full distribution at every position."""
    rng = np.random.default_rng(seed)
    batch = []
    for index in range(per_domain * len(DOMAINS)):
        domain = DOMAINS[index % len(DOMAINS)]
        completion = {"code": 12, "math": 7, "reasoning": 2}[domain] + int(rng.integers(0, 5))
        rollout = make_rollout(rng, index, domain, prompt=int(rng.integers(2, 9)), completion=completion)
        logits = sharpness * rng.standard_normal((len(rollout.token_ids), vocabulary))
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        score = TeacherScore(domain, Full(logprobs.astype(np.float32)))
        batch.append(ScoredRollout(rollout, scores=((1.0, score),)))
    return batch


def make_spec(model: str, run_dir: Path, **changes: Any) -> StudentSpec:
    """A student of ``model`` in ``run_dir``, which is claimed by attempt ``now``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "attempt").write_text("now")
    settings: dict[str, Any] = {
        "model": model,
        "engine": Engine(ranks=1, microbatch_tokens=96, expert_bias_rate=1e-3),
        "optimizer": AdamW(lr=1e-2, warmup_steps=2, schedule="cosine"),
        "loss": FullReverseKL(estimator="full_reverse_kl"),
        "temperature": 1.0,
        "domains": DOMAINS,
        "total_optimizer_steps": 10,
        "seed": 0,
        "device": "cpu",
        "run_dir": str(run_dir),
        "attempt": "now",
        "keep_checkpoints": 2,
    }
    return StudentSpec(**{**settings, **changes})


class ProcessRanks:
    """Ranks in spawned processes, which build one engine after another: cheaper for tests than actors of a run."""

    def __init__(self, size: int) -> None:
        self.size = size
        port = engine.free_port()
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            environment = engine.environment(rank, size, address="127.0.0.1", port=port, device="cpu")
            process = context.Process(target=_serve, args=(there, environment), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def start(self, spec: StudentSpec) -> ProcessRanks:
        """Replace the engines by those of ``spec``."""
        self.call("start", [(spec,)] * self.size)
        return self

    def call(self, method: str, per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a method of the rank on all of them."""
        for pipe, args in zip(self._pipes, per_rank, strict=True):
            pipe.send((method, args))
        answers = [pipe.recv() for pipe in self._pipes]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(pipe: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    rank: Any = None
    while True:
        method, args = pipe.recv()
        try:
            if method == "start":
                rank, answer = StudentRank(*args), None
            else:
                answer = getattr(rank, method)(*args)
        except Exception as error:  # the driver raises it
            answer = error
        pipe.send(answer)


def student(
    ranks: Ranks, spec: StudentSpec, *, updates: int = 1, shares: dict[str, float] = SHARES, rule: str = "explicit"
) -> Any:
    return DeepSpeedStudent(ranks, spec, shares=shares, updates_per_step=updates, share_rule=rule)


def engine_of(ranks: int, **changes: Any) -> Engine:
    return Engine(**{"ranks": ranks, "microbatch_tokens": 96, "expert_bias_rate": 1e-3, **changes})


def train(
    ranks: ProcessRanks, spec: StudentSpec, steps: int = 5
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    learner = student(ranks.start(spec), spec)
    metrics = [learner.update(make_batch(seed=7), step=step) for step in range(steps)]
    return dict(learner.weights().state_dict()), metrics


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)

"""`make gpu`: one process distils into a LoRA student of a 0.6 B-shaped Qwen3 on one GPU; how fast each part is.

`python -m tests.benchmarks.one_gpu [MODEL=PATH] [json=FILE] [small=1]`. The sampler, the teachers' scorers, the loss
and the adapters are those of a run; Ray, DeepSpeed and W&B are not there. Without MODEL the weights are random, which
no speed depends on. JSON is written after each part, so that what was measured is kept whatever comes.

Needs torch, transformers, peft and pydantic, and no network.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import bind
from mopd.distill.models.adapters import adapter_state, merged_state, with_trained_adapter
from mopd.distill.models.flops import ModelCost, model_cost
from mopd.distill.models.heads import fingerprint, plain_head
from mopd.distill.models.packing import PaddedRows
from mopd.distill.recipe import FullReverseKL, LoRA
from mopd.distill.student.forward import Objective, forward
from mopd.distill.student.update_metrics import UpdateTotals
from mopd.distill.types import Prompt, Rollout, ScoredRollout, TeacherScore
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.drafts import NOTHING_ENDS
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.scorer import Conditions

QWEN3 = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True,
    "max_position_embeddings": 4096, "rope_theta": 1_000_000.0,
}  # fmt: skip
"""As the configuration of Qwen3-0.6B has it."""
SIZES = {"prompts": 64, "prompt": 128, "answer": 256, "batch": 64, "microbatch": 8, "steps": 8}
SMALL = {"prompts": 4, "prompt": 6, "answer": 5, "batch": 4, "microbatch": 2, "steps": 3}
SMALL_QWEN3 = {**QWEN3, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300}  # fmt: skip
DOMAINS = ("math", "code")
GEMM = 8192
RATE = 5e-4
NOISE = 0.2
"""Scale of the teachers' adapters, drawn at random: enough for a divergence that can be seen to fall."""


class Module:
    """A model where an engine is expected."""

    def __init__(self, model: Any) -> None:
        self.module = model

    def __call__(self, **inputs: Any) -> Any:
        """The model's forward."""
        return self.module(**inputs)


class OneGPU:
    """The student, two teachers that share its base, and the figures so far."""

    def __init__(
        self, path: str | None, *, device: str, small: bool, note: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.device, self._note = device, note
        self.sizes = SMALL if small else SIZES
        self.figures: dict[str, Any] = {
            "card": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "model": path or f"qwen3, random weights, {SMALL_QWEN3 if small else QWEN3}",
            "sizes": self.sizes,
        }
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        config = SMALL_QWEN3 if small else QWEN3

        def base() -> Any:
            if path is not None:
                return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
            torch.manual_seed(0)
            with torch.device(device):
                return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **config), dtype=dtype)

        self.cost: ModelCost = model_cost(base())
        self.student = with_trained_adapter(base(), LoRA(rank=16), base="one-gpu")
        for parameter in self.student.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # as DeepSpeed's optimizer holds them
        self.teachers = {name: self._teacher(base(), seed) for seed, name in enumerate(DOMAINS)}
        self.vocabulary = self.student.config.vocab_size

    def _teacher(self, base: Any, seed: int) -> TeacherModel:
        model = with_trained_adapter(base, LoRA(rank=16), base="one-gpu")
        generator = torch.Generator(device=self.device).manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=NOISE, generator=generator)
        whole = model.merge_and_unload().requires_grad_(False).eval()
        return TeacherModel.around(whole, Conditions(1.0, self._microbatch_tokens))

    @property
    def _microbatch_tokens(self) -> int:
        return self.sizes["microbatch"] * (self.sizes["prompt"] + self.sizes["answer"])

    def measure(self) -> dict[str, Any]:
        """Every part, noted as soon as it is there."""
        self._keep("gemm_flops", self._gemm())
        self._sampled(step=0)  # what is made once at a first call
        rollouts, seconds = self._sampled(step=1)
        written = sum(r.trained_tokens for r in rollouts)
        self._keep("sampling", {"rollouts_per_s": len(rollouts) / seconds, "tokens_per_s": written / seconds})
        self._scored(rollouts)
        scored, seconds = self._scored(rollouts)
        tokens = sum(len(r.token_ids) for r in rollouts)
        self._keep("scoring", {"tokens_per_s": tokens / seconds, "mfu": self._mfu([tokens], seconds, trains=False)})
        self._keep("distilling", self._distilled(scored))
        self._keep("publishing", self._published())
        if self.device == "cuda":
            self._keep("peak_gib", torch.cuda.max_memory_allocated() / 2**30)
        return self.figures

    def _keep(self, name: str, value: Any) -> None:
        self.figures[name] = value
        self._note(self.figures)

    def _seconds(self, work: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        began = time.perf_counter()
        result = work()
        self._wait()
        return result, time.perf_counter() - began

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _gemm(self) -> float:
        """FLOPs a second of a square product in the model's dtype: what a use of the card is measured against."""
        size = GEMM if self.device == "cuda" else 512
        a, b = (torch.randn(size, size, device=self.device, dtype=self._dtype) for _ in range(2))
        took = [self._seconds(lambda: a @ b)[1] for _ in range(10)]
        return 2 * size**3 / min(took)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def _mfu(self, lengths: Sequence[int], seconds: float, *, trains: bool) -> float:
        """The part of the card's own matrix product that was used; of frozen weights no gradient is made, so an update
        counts two forwards, not three."""
        length = self.sizes["prompt"] + self.sizes["answer"]
        flops = self.cost.forward([length] * (sum(lengths) // length)) * (2 if trains else 1)
        return flops / seconds / self.figures["gemm_flops"]

    def _sampled(self, *, step: int) -> tuple[list[Rollout], float]:
        generator = torch.Generator().manual_seed(step)
        prompts = [
            Prompt(DOMAINS[i % 2], f"{step}/{i}",
                   tuple(torch.randint(self.vocabulary, (self.sizes["prompt"],), generator=generator).tolist()), "", "")
            for i in range(self.sizes["prompts"])
        ]  # fmt: skip
        decoding = Decoding(
            max_new_tokens=self.sizes["answer"], temperature=1.0, greedy=False, seed=0, step=step,
            end_token_ids=NOTHING_ENDS, pad_token_id=0,
        )  # fmt: skip
        sampler = StudentSampler(decoding, samples_per_prompt=1, batch_size=self.sizes["batch"])
        sampler.load_weights(InProcess(self.student), version=step)
        return self._seconds(lambda: [r for batch in sampler.sample(prompts, step=step) for r in batch])

    def _scored(self, rollouts: Sequence[Rollout]) -> tuple[list[ScoredRollout], float]:
        def score() -> list[ScoredRollout]:
            payloads: dict[int, Any] = {}
            for name, teacher in self.teachers.items():
                own = [r for r in rollouts if r.domain == name]
                masks = [r.loss_mask for r in own]
                scored = teacher.score([r.token_ids for r in own], "hidden", masks=masks)
                payloads |= {r.index: TeacherScore(name, payload) for r, payload in zip(own, scored, strict=True)}
            return [ScoredRollout(r, ((1.0, payloads[r.index]),)) for r in rollouts]

        return self._seconds(score)

    def _distilled(self, scored: Sequence[ScoredRollout]) -> dict[str, Any]:
        """Steps on one batch: loss by step, and the speed of one."""
        heads = {fingerprint(w): w for w in (plain_head(t.model).weight for t in self.teachers.values())}
        loss = bind(FullReverseKL(estimator="full_reverse_kl", payload="hidden"))
        objective = Objective(loss, 1.0, heads)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE)
        count = {d: sum(s.rollout.trained_tokens for s in scored if s.rollout.domain == d) for d in DOMAINS}
        size = self.sizes["microbatch"]

        def step() -> float:
            totals, value = UpdateTotals(DOMAINS, self.device), 0.0
            for first in range(0, len(scored), size):
                microbatch = collate(
                    scored[first : first + size],
                    token_weight={d: 0.5 / max(1, count[d]) for d in DOMAINS},
                    domains=DOMAINS,
                    pad_id=0,
                    payload="hidden",
                    reward_advantages=None,
                    device=self.device,
                )  # fmt: skip
                rows = PaddedRows(microbatch.token_ids_BT, microbatch.attention_mask_BT)
                losses = forward(Module(self.student), microbatch, rows, objective, totals).loss_BT
                part = (losses * microbatch.weights_BT).sum()
                part.backward()
                value += float(part.detach())
            optimizer.step()
            optimizer.zero_grad()
            return value

        self.student.train()
        steps = [self._seconds(step) for _ in range(self.sizes["steps"])]
        self.student.eval()
        tokens = sum(len(s.rollout.token_ids) for s in scored)
        seconds = statistics.median(took for _, took in steps[1:])
        return {
            "loss_by_step": [value for value, _ in steps],
            "tokens_per_s": tokens / seconds,
            "seconds_a_step": seconds,
            "mfu": self._mfu([tokens], seconds, trains=True),
        }

    def _published(self) -> dict[str, float]:
        """Seconds until the adapter, and the whole merged model, lie in the host's memory."""
        adapter, seconds = self._seconds(lambda: {n: t.cpu() for n, t in adapter_state(self.student).items()})
        merged, merged_seconds = self._seconds(lambda: {n: t.cpu() for n, t in merged_state(self.student).items()})
        sizes = [sum(t.numel() * t.element_size() for t in state.values()) for state in (adapter, merged)]
        return {"adapter_s": seconds, "adapter_bytes": sizes[0], "merged_s": merged_seconds, "merged_bytes": sizes[1]}


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure what the command line asks for."""
    given = dict(argument.split("=", 1) for argument in arguments)
    small = given.get("small") == "1"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not small:
        sys.exit("torch finds no CUDA device on this machine; small=1 tries the script on a CPU")
    target = Path(given.get("json", Path(tempfile.gettempdir()) / "mopd-gpu.json"))

    def note(figures: Mapping[str, Any]) -> None:
        target.write_text(json.dumps(figures, indent=1))

    figures = OneGPU(given.get("MODEL"), device=device, small=small, note=note).measure()
    json.dump(figures, sys.stdout, indent=1)
    print(f"\nwritten to {target}", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])

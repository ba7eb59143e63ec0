"""A real vLLM writes: weights reach it by every transport, what it writes and draws is the student's, it may be lost.

`make test-vllm` installs vLLM in an environment of its own and runs this; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

REPOSITORY = Path(__file__).parents[2]
for folder in ("unit", "integration"):
    sys.path.append(str(REPOSITORY / "tests" / folder))

from check_kit import tokenizer_of  # noqa: E402
from runs import MARK, finish, kill, left, mark, mopd, rows, wait_for  # noqa: E402

from mopd.distill.guard import SHARED_MEMORY  # noqa: E402
from mopd.distill.metrics.drafts import total_counts  # noqa: E402
from mopd.distill.models.adapters import with_trained_adapter  # noqa: E402
from mopd.distill.models.load import load_model  # noqa: E402
from mopd.distill.models.mtp import DraftHeads, attach, draft_heads, make_heads  # noqa: E402
from mopd.distill.payloads import Support  # noqa: E402
from mopd.distill.recipe import FaultRecipe, LoRA, VLLMRecipe  # noqa: E402
from mopd.distill.types import Prompt, RunError, align_logits  # noqa: E402
from mopd.rollouts.engines.agreement import fixed_rows, next_logprobs, visible_temperature  # noqa: E402
from mopd.rollouts.engines.base import Decoding, Drafts, SamplerSettings  # noqa: E402
from mopd.rollouts.engines.generate import generate  # noqa: E402
from mopd.rollouts.engines.in_process import InProcess, StudentSampler  # noqa: E402
from mopd.rollouts.engines.vllm.engine import _sampler, _Student  # noqa: E402
from mopd.rollouts.engines.vllm.files import transport_of  # noqa: E402
from mopd.rollouts.engines.vllm.pool import Here, VLLMServers  # noqa: E402
from mopd.rollouts.engines.vllm.server import HeldModel, ServerSpec, VLLMServer  # noqa: E402

PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; `make test-vllm` does that")

VOCABULARY, TOKENS = 120, 112
"""Ids of the output head, and of the tokenizer: the last ones must never be written."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 256,
    "initializer_range": 0.25, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    "mimo_v2_flash": {
        **EXPERTS, "n_routed_experts": 4, "v_head_dim": 64, "sliding_window": 20,
        "layer_types": ["full_attention", "sliding_attention"], "num_attention_heads": 4,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 0.5}
            for kind, base in (("full_attention", 5e6), ("sliding_attention", 1e4))
        },
    },
}  # fmt: skip
DECODING = Decoding(
    max_new_tokens=24, temperature=0.9, greedy=False, seed=3, step=0, end_token_ids=(1, 7), pad_token_id=0,
    vocabulary=TOKENS, support=Support(4, forced=(1,), whose="student"),
)  # fmt: skip
SETTINGS = SamplerSettings(DECODING, samples_per_prompt=3, batch_size=24)
TOLERANCE = 1e-3
"""Nats between two float32 ways to one log-probability."""


def make(folder: Path, family: str, seed: int) -> str:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]}))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dtype == torch.float32 and "inv_freq" not in name:
                tensor.add_(0.05 * torch.randn_like(tensor))
    model.save_pretrained(folder / f"{family}-{seed}")
    return str(folder / f"{family}-{seed}")


class Forgetful(VLLMServer):
    """A server that does not pass weights on, once it is told so."""

    forgets = False

    def publish(self, *args: Any) -> None:
        if not self.forgets:
            super().publish(*args)


class Running:
    """One server, owned by this process, and a sampler of its student."""

    def __init__(
        self, folder: Path, path: str, *, lora: LoRA | None = None, draws: int = 0, extra: Mapping[str, Any] = {}
    ) -> None:
        self.folder, self.said = folder, list[str]()
        spec = ServerSpec(0, str(PYTHON), "cpu", "float32", str(folder / "logs"), 0.0, extra)
        self.server = Forgetful(spec)
        self.servers = VLLMServers(
            [spec], faults=FaultRecipe(backoff_seconds=0.0), limit_seconds=240.0, own=lambda _: Here(self.server),
            share=lambda state: state, say=self.said.append,
        )  # fmt: skip
        config = AutoConfig.from_pretrained(path)
        self.servers.transport = transport_of("auto", config, lora=lora, device="cpu")
        self.servers.rows = fixed_rows(config, context=256)
        self.servers.hold(HeldModel(path, lora=lora if self.servers.transport == "adapter" else None))
        transport = _Student(self.servers, DECODING, draws=draws, vocabulary=TOKENS, tested=[])
        self.sampler = _sampler(SETTINGS, self.servers, transport)

    @property
    def pid(self) -> int:
        assert self.server._child is not None
        return self.server._child.pid

    def notes(self, key: str) -> list[dict[str, Any]]:
        return [row for row in rows(self.folder / "logs" / "published.jsonl") if key in row]

    def written(self, sampler: Any = None, **how: Any) -> list[list[int]]:
        rng = np.random.default_rng(0)
        prompts = [Prompt("math", str(i), tuple(rng.integers(2, TOKENS, 9).tolist()), "", "") for i in range(8)]
        microbatches = (sampler or self.sampler).sample(prompts, step=2, **how)
        self.rollouts = [rollout for microbatch in microbatches for rollout in microbatch]
        return [rollout.token_ids.tolist() for rollout in self.rollouts]


@contextmanager
def running(folder: Path, path: str, **how: Any) -> Iterator[Running]:
    started = Running(folder, path, **how)
    try:
        yield started
    finally:
        started.servers.close()
    assert not [child for child in psutil.Process().children() if "process.py" in " ".join(child.cmdline())]


def assert_own(engine: Running, module: Any) -> None:
    """What the engine writes has the probabilities, the ends and the support of the module's own distribution."""
    engine.written()
    assert [rollout.index for rollout in engine.rollouts] == [*range(24)]
    assert len({tuple(rollout.token_ids.tolist()) for rollout in engine.rollouts}) > 16
    for rollout in engine.rollouts:
        ids_T = torch.from_numpy(rollout.token_ids).long()
        with torch.no_grad():
            logits_TV = align_logits(module(input_ids=ids_T[None]).logits)[0, :, :TOKENS] / DECODING.temperature
        logprobs_TV = torch.log_softmax(logits_TV, -1)
        own_T = logprobs_TV.gather(1, ids_T[:, None])[:, 0].numpy()
        mask_T = rollout.loss_mask
        np.testing.assert_allclose(rollout.sampler_logprobs[mask_T], own_T[mask_T], atol=TOLERANCE)
        assert int(rollout.token_ids.max()) < TOKENS
        ended = np.isin(rollout.token_ids[mask_T], DECODING.end_token_ids)
        assert (ended.sum(), ended[-1]) == ((1, True) if rollout.finish == "eos" else (0, False))
        assert rollout.support_ids is not None
        chosen = logprobs_TV[mask_T].gather(1, torch.from_numpy(rollout.support_ids[mask_T]).long())
        others = logprobs_TV[mask_T].clone()
        others[:, 1] = -torch.inf
        least = others.topk(4).values[:, -1:]  # not per token: the least of the likeliest
        assert bool(((chosen >= least - TOLERANCE) | (chosen == logprobs_TV[mask_T][:, 1:2])).all())


def greedy_of(engine: Running, module: Any) -> list[list[int]]:
    sampler = StudentSampler(replace(DECODING, support=None), samples_per_prompt=1, batch_size=24)
    sampler.load_weights(InProcess(module), version=0)
    return engine.written(sampler, greedy=True)


def test_a_dense_student_reaches_it_by_reload_and_is_what_writes(tmp_path: Path) -> None:
    paths = [make(tmp_path, "qwen3", seed) for seed in (0, 1)]
    with running(tmp_path, paths[0], draws=20_000) as engine:
        for version, path in enumerate((*paths, paths[0])):
            module = load_model(path, device="cpu", dtype="float32")
            engine.sampler.load_weights(InProcess(module), version=version)
            assert_own(engine, module)
            greedy = greedy_of(engine, module)
            assert engine.written(greedy=True) == greedy
        published = engine.notes("published")
        assert [row["transport"] for row in published] == ["reload"] * 3
        (draws,) = engine.notes("draws")
        assert draws["problem"] is None
        print(f"draws show a temperature off by {draws['visible_temperature']:.3f}; {published}")

        # A temperature off by 2% is refused, by as many draws as it takes to see that much.
        logprobs_V = next_logprobs(module, [draws["prompt"]], DECODING.temperature, TOKENS)[0]
        n = next(n for n in range(1000, 10**6, 1000) if visible_temperature(logprobs_V, n) <= 0.015)
        complete = engine.servers.complete

        def hotter(weights: Any, arguments: Any) -> Any:
            return complete(weights, [(p, i, replace(d, temperature=1.02 * d.temperature)) for p, i, d in arguments])

        engine.servers.complete = hotter  # type: ignore[method-assign]
        with pytest.raises(RunError, match="does not draw from the student's distribution"):
            engine.servers.check_draws(InProcess(module), DECODING, draws=n, vocabulary=TOKENS)
        engine.servers.complete = complete  # type: ignore[method-assign]

        # Killed in a step, and hung in one: started again, with the weights that it had; nothing is lost.
        expected = engine.written()
        threading.Timer(0.2, os.kill, (engine.pid, signal.SIGKILL)).start()
        assert _until_lost(engine, 1) == expected
        os.kill(engine.pid, signal.SIGSTOP)
        engine.servers._limit_seconds = 30.0
        assert engine.written() == expected
        assert len(engine.notes("lost")) == 2
        assert "hangs" in engine.notes("lost")[1]["why"]
        assert [row["published"] for row in engine.notes("published")] == [0, 1, 2, 2, 2]

        # A publish that is skipped.
        engine.server.forgets = True
        with pytest.raises(RunError, match="does not hold the student's weights"):
            engine.sampler.load_weights(InProcess(load_model(paths[1], device="cpu", dtype="float32")), version=3)


def _until_lost(engine: Running, times: int) -> list[list[int]]:
    """What is written, again and again until a server was lost in between; equal each time."""
    before = written = engine.written()
    while len(engine.notes("lost")) < times:
        written = engine.written()
        assert written == before
    return engine.written()


def test_a_lora_student_reaches_it_by_its_adapter_alone(tmp_path: Path) -> None:
    path, lora = make(tmp_path, "qwen3", 0), LoRA(rank=4, alpha=8.0)
    module = with_trained_adapter(load_model(path, device="cpu", dtype="float32"), lora, base=path).eval()
    with running(tmp_path, path, lora=lora) as engine:
        for version in range(3):
            engine.sampler.load_weights(InProcess(module), version=version)
            assert_own(engine, module)
            with torch.no_grad():
                for weight in module.parameters():
                    if weight.requires_grad:
                        weight.add_(0.05 * torch.randn_like(weight))
        assert [row["transport"] for row in engine.notes("published")] == ["adapter"] * 3
        print(engine.notes("published"))


@pytest.mark.parametrize("family", ["qwen3_moe", "mimo_v2_flash"])
def test_a_mixture_on_a_cpu_reaches_it_by_a_restart(tmp_path: Path, family: str) -> None:
    """MiMo's fixed rows are longer than its window, which vLLM and transformers count in different ways."""
    paths = [make(tmp_path, family, seed) for seed in (0, 1)]
    with running(tmp_path, paths[0], draws=8000) as engine:
        module = load_model(paths[1], device="cpu", dtype="float32")
        engine.sampler.load_weights(InProcess(module), version=1)
        assert_own(engine, module)
        assert [row["transport"] for row in engine.notes("published")] == ["restart"]
        assert [row["problem"] for row in engine.notes("draws")] == [None]
        print(engine.notes("published"))


class WithHeads(InProcess):
    """A model with draft heads, which are published with it as a rank of a run publishes them."""

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        heads = draft_heads(self._model)
        assert heads is not None
        return heads.with_copies(super().state_dict())


def taught_heads(path: str, module: Any) -> DraftHeads:
    """One draft layer that has learnt by heart what the model writes greedily to the prompts of :class:`Running`."""
    heads = make_heads(path, module, 1, seed=1)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, TOKENS, 9).tolist() for _ in range(8)]
    how = replace(DECODING, support=None, greedy=True, end_token_ids=(-1,), max_new_tokens=30)
    rows = [[*p, *c.token_ids.tolist()] for p, c in zip(prompts, generate(module, prompts, range(8), how), strict=True)]
    ids_BT = torch.tensor(rows)
    with torch.no_grad():
        hidden_BTH = module(input_ids=ids_BT, output_hidden_states=True).hidden_states[-1]
    optimizer = torch.optim.Adam(heads.parameters(), lr=3e-3)
    for _ in range(150):
        made = heads.unroll(hidden_BTH, ids_BT, 2)
        losses = [
            torch.nn.functional.cross_entropy(
                heads.logits(guess_BTH[:, : -j - 1]).flatten(0, 1),
                ids_BT[:, j + 1 :].flatten(),  # not per token
            )
            for j, guess_BTH in enumerate(made, start=1)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return heads


@pytest.mark.parametrize("k", [1, 3])
def test_draft_heads_write_the_same_greedily_and_wrong_draws_are_refused(tmp_path: Path, k: int) -> None:
    """vLLM 0.32 for CPUs draws wrongly as it speculates, with right log-probabilities; greedy answers are right."""
    path = make(tmp_path, "mimo_v2_flash", 0)
    module = load_model(path, device="cpu", dtype="float32")
    attach(module, taught_heads(path, module))
    speculation = {"speculative_config": {"method": "mtp", "num_speculative_tokens": k}}
    with running(tmp_path, path, extra={**speculation, "enable_prefix_caching": False}) as engine:
        engine.sampler.load_weights(WithHeads(module), version=0)
        assert engine.written(greedy=True) == greedy_of(engine, module)
        ours = StudentSampler(replace(DECODING, support=None, drafts=Drafts(k)), samples_per_prompt=1, batch_size=24)
        ours.load_weights(InProcess(module), version=0)
        engine.written(ours, greedy=True)
        counts = total_counts(rollout.drafts for rollout in engine.rollouts)
        assert counts is not None
        assert counts.tokens > 1.2 * counts.forwards  # the heads guess, so guesses were taken there as well
        with pytest.raises(RunError, match=r"take `speculative_config` out of `rollout.vllm.extra`"):
            engine.servers.check_draws(
                WithHeads(module), replace(DECODING, vocabulary=None), draws=4000, vocabulary=VOCABULARY
            )
        (draws,) = engine.notes("draws")
        assert draws["problem"].startswith(
            "after the first token of a row, "
        )  # which is drawn without guesses, and rightly
        assert "chi-square" in draws["problem"]
        print(draws["problem"])


# ---- whole runs


def recipe(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """A student and a teacher with a tokenizer, and a run of few steps in which vLLM writes."""
    tokenizer = tokenizer_of("arithmetic")
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        sizes = {**SIZES, **FAMILIES[family], "vocab_size": len(tokenizer), "initializer_range": 0.1}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    content = {
        "name": "vllm",
        "device": "cpu",
        "student": {"model": str(folder / "student"), "optimizer": {"lr": 1.0e-3, "warmup_steps": 1}},
        "domains": {"math": {"task": "arithmetic", "teacher": "big", "prompts": 8}},
        "teachers": {"big": {"model": str(folder / "teacher")}},
        "rollout": {
            "engine": "vllm", "workers": 1, "max_new_tokens": 40, "batch_size": 16, "samples_per_prompt": 2,
            "vllm": VLLMRecipe(python=str(PYTHON), test_draws=5000).model_dump(mode="json"),
        },
        "faults": {"backoff_seconds": 0.1},
        "evaluate": {"validation_prompts": 4, "test_prompts": 4, "graded_prompts": 4},
        "run": {"steps": 4, "evaluate_every": 2, "save_every": 2},
        "track": {"wandb": {"mode": "disabled"}},
        **changes,
    }  # fmt: skip
    path = folder / "vllm.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def vllm_of(process: Any) -> list[psutil.Process]:
    """The vLLM processes of a command."""
    found = []
    for other in psutil.process_iter():
        try:
            if other.environ().get(MARK) == mark(process) and "vllm/process.py" in " ".join(other.cmdline()):
                found.append(other)
        except psutil.Error:
            continue
    return found


def test_a_run_goes_on_where_its_server_is_killed_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = mopd("run", recipe(tmp_path), "--out", out)
    wait_for(process, out / "metrics.jsonl", 2)
    for server in vllm_of(process):
        server.kill()
    status, output = finish(process)
    assert status == 0, output
    assert "is not `keyed`" in output
    steps = [row for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    notes = rows(out / "vllm" / "published.jsonl")
    assert max(row["largest_difference"] for row in notes if "published" in row) < TOLERANCE
    assert [row["problem"] for row in notes if "draws" in row] == [None]
    assert sum("lost" in row for row in notes) == 1
    assert (out / "vllm" / "server-0.log").stat().st_size > 0
    assert json.loads((out / "seesaw.json").read_text())
    assert left(mark(process)) == []
    assert [*SHARED_MEMORY.glob("mopd-mopd-r*")] == []


def test_a_killed_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = mopd("run", recipe(tmp_path, student={
        "model": str(tmp_path / "student"), "lora": {"rank": 4},
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    }), "--out", out)  # fmt: skip
    wait_for(process, out / "metrics.jsonl", 2)
    assert vllm_of(process)
    kill(process)
    assert left(mark(process)) == []
    assert [*SHARED_MEMORY.glob("mopd-mopd-r*")] == []
    transports = {row["transport"] for row in rows(out / "vllm" / "published.jsonl") if "published" in row}
    assert transports == {"adapter"}

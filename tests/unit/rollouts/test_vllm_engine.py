"""The engine vllm without vLLM: requests, files, refusals; a stand-in for servers that die, hang or keep weights."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from check_kit import CONFIG, problems
from deadline_kit import Deadline
from peft import PeftModel
from pydantic import ValidationError
from student_kit import VOCABULARY, make_model
from transformers import AutoConfig, AutoModelForCausalLM
from vllm_kit import owned_here, stand_in

from mopd.distill.loss.registry import bind
from mopd.distill.models.adapters import with_trained_adapter
from mopd.distill.models.load import load_model
from mopd.distill.payloads import Support, likeliest
from mopd.distill.recipe import EvaluateRecipe, FaultRecipe, LoRA, RolloutRecipe, TopKReverseKL, VLLMRecipe
from mopd.distill.recipe.schema.vllm import Transport
from mopd.distill.types import Prompt, RunError, Sampler, align_logits
from mopd.recipes.check.plugins import check_engine, engine_warnings
from mopd.rollouts.engines.agreement import fixed_rows
from mopd.rollouts.engines.base import Decoding, FrozenModel, SamplerProcesses, SamplerSettings, StudentModel
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.engines.vllm import process
from mopd.rollouts.engines.vllm.engine import VLLM, _sampler, _Student, lacking, refused
from mopd.rollouts.engines.vllm.files import own_keys, served_folder, transport_of, write_adapter, write_model
from mopd.rollouts.engines.vllm.pool import VLLMServers
from mopd.rollouts.engines.vllm.requests import completions_of, seed_of, write_request
from mopd.rollouts.engines.vllm.server import HeldModel, ServerRefused, ServerSpec

DECODING = Decoding(
    max_new_tokens=6, temperature=0.8, greedy=False, seed=3, step=0, end_token_ids=(1, 5), pad_token_id=0,
    vocabulary=VOCABULARY - 4,
)  # fmt: skip
SETTINGS = SamplerSettings(DECODING, samples_per_prompt=3, batch_size=8)
FAULTS = FaultRecipe(retries=1, backoff_seconds=0.0, start_seconds=300.0)


# ---- requests


def test_equal_prompts_are_sent_once_with_a_seed_for_each_rollout() -> None:
    prompts = [[7], [8, 9], [7], [8, 9], [7]]
    request, places = write_request(prompts, [10, 11, 12, 13, 14], DECODING)
    assert request["prompts"] == [[7], [8, 9]]
    flat = [seed for own in request["seeds"] for seed in own]
    assert [flat[place] for place in places] == [seed_of(DECODING, rollout) for rollout in (10, 11, 12, 13, 14)]
    assert [len(own) for own in request["seeds"]] == [3, 2]


def test_seeds_follow_from_seed_step_and_rollout_alone() -> None:
    seeds = {
        seed_of(replace(DECODING, seed=seed, step=step), rollout)
        for seed in (0, 1, 2**63 - 1)
        for step in (0, 1, 1 << 31)
        for rollout in range(50)
    }
    assert len(seeds) == 3 * 3 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(DECODING, 4) == seed_of(replace(DECODING, temperature=0.1), 4)


def test_what_is_written_greedily_or_for_an_evaluation_is_asked_so() -> None:
    sampled = write_request([[7]], [0], replace(DECODING, top_p=0.9, top_k=5))[0]["settings"]
    greedy = write_request([[7]], [0], replace(DECODING, top_p=0.9, top_k=5, greedy=True))[0]["settings"]
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.8, 0.9, 5)
    assert greedy["temperature"] == 0.0
    assert not {"top_p", "top_k"} & set(greedy)
    assert sampled["stop_token_ids"] == [1, 5]
    assert sampled["ignore_eos"] is True


def test_an_answer_ends_by_any_end_token_at_the_limit_or_in_a_stop_string() -> None:
    reply = [[[7, 8, 5], [-1.0, -2.0, -3.0], None], [[7, 8, 9], [-1.0, -2.0, -3.0], None]]
    eos, length = completions_of(reply, DECODING)
    assert (eos.finish, length.finish) == ("eos", "length")

    def stops(ids_BN: torch.Tensor, scores: None) -> torch.Tensor:
        return (ids_BN == 8).any(1)

    eos, length = completions_of(reply, replace(DECODING, stops=stops))
    assert [(c.token_ids.tolist(), c.logprobs.tolist(), c.finish) for c in (eos, length)] == [
        ([7, 8], [-1.0, -2.0], "stop")
    ] * 2
    (eos,) = completions_of([[[7, 5], [-1.0, -2.0], None]], replace(DECODING, stops=lambda ids, _: (ids == 5).any(1)))
    assert (eos.token_ids.tolist(), eos.finish) == ([7, 5], "eos")  # an end token comes first


def test_the_support_of_a_rollout_is_what_every_engine_records() -> None:
    rng = np.random.default_rng(0)
    logprobs_NV = torch.log_softmax(torch.from_numpy(rng.normal(size=(5, 20))), -1)
    support = Support(4, forced=(2, 3), whose="student")
    ranked = logprobs_NV.topk(support.k + 2).indices.tolist()
    (written,) = completions_of([[[9] * 5, [-1.0] * 5, ranked]], replace(DECODING, support=support))
    assert written.support_ids is not None
    for own, expected in zip(written.support_ids.tolist(), likeliest(logprobs_NV, support).tolist(), strict=True):
        assert sorted(own) == sorted(expected)


# ---- files


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "mimo_v2_flash"])
def test_files_for_vllm_hold_the_students_weights(tmp_path: Path, family: str) -> None:
    initial, later = (make_model(tmp_path / str(seed), family, seed=seed) for seed in (0, 1))
    student = load_model(later, device="cpu", dtype="float32")
    config = AutoConfig.from_pretrained(initial)
    write_model(student.state_dict(), tmp_path / "written", source=initial, config=config, trust_remote_code=False)
    written = json.loads((tmp_path / "written" / "config.json").read_text())
    assert {**written, **own_keys(config)} == written
    (tmp_path / "written" / "config.json").write_text((Path(initial) / "config.json").read_text())  # as transformers'
    ids = torch.arange(2, 20)[None]
    loaded = load_model(tmp_path / "written", device="cpu", dtype="float32")
    assert torch.equal(loaded(input_ids=ids).logits, student(input_ids=ids).logits)


def test_a_window_counts_the_query_for_vllm_and_not_for_transformers(tmp_path: Path) -> None:
    path = make_model(tmp_path, "mimo_v2_flash")
    config = AutoConfig.from_pretrained(path)
    folder = served_folder(path, config, tmp_path / "served")
    written = json.loads((Path(folder) / "config.json").read_text())
    assert written["sliding_window_size"] == config.sliding_window
    assert AutoConfig.from_pretrained(folder).sliding_window == config.sliding_window + 1  # why it is a file of its own
    assert written["hybrid_layer_pattern"] == [0, 1, 0]
    assert written["swa_num_key_value_heads"] == 2 * config.num_key_value_heads
    assert AutoModelForCausalLM.from_pretrained(path).state_dict().keys() == (
        AutoModelForCausalLM.from_pretrained(folder).state_dict().keys()
    )
    assert max(map(len, fixed_rows(config, context=128))) > config.sliding_window


def test_an_adapter_is_written_as_peft_reads_it(tmp_path: Path) -> None:
    base, lora = make_model(tmp_path, "qwen3"), LoRA(rank=2, alpha=3.0)
    student = with_trained_adapter(load_model(base, device="cpu", dtype="float32"), lora, base=base).eval()
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    write_adapter(InProcess(student).adapter_state(), tmp_path / "adapter", lora=lora)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter")).eval()
    ids = torch.arange(2, 20)[None]
    torch.testing.assert_close(read(input_ids=ids).logits, student(input_ids=ids).logits)


def test_how_weights_travel_follows_from_the_model_its_adapter_and_the_device(tmp_path: Path) -> None:
    dense, mixture = (AutoConfig.from_pretrained(make_model(tmp_path, family)) for family in ("qwen3", "qwen3_moe"))
    lora = LoRA(rank=2)
    table = {
        ("dense", None, "cpu"): "reload", ("dense", None, "cuda"): "reload", ("dense", lora, "cpu"): "adapter",
        ("mixture", None, "cpu"): "restart", ("mixture", None, "cuda"): "reload", ("mixture", lora, "cpu"): "restart",
        ("mixture", lora, "cuda"): "adapter", ("dense", LoRA(rank=2, embeddings=True), "cuda"): "reload",
    }  # fmt: skip
    for (kind, own, device), expected in table.items():
        config = dense if kind == "dense" else mixture
        assert transport_of("auto", config, lora=own, device=device) == expected
        assert transport_of("restart", config, lora=own, device=device) == "restart"


# ---- refusals


def vllm_recipe(**settings: Any) -> RolloutRecipe:
    return RolloutRecipe(engine="vllm", workers=1, vllm=VLLMRecipe(**settings))


def test_what_cannot_work_is_refused_by_its_leaf(tmp_path: Path) -> None:
    for name in ("model", "tensor_parallel_size"):
        with pytest.raises(ValidationError, match=rf"extra\.{name}"):
            VLLMRecipe(extra={name: 2})
    (missing,) = lacking(vllm_recipe(python=str(tmp_path / "python")))
    assert "`rollout.vllm.python`" in missing
    assert "make install-vllm" in missing
    there = vllm_recipe(python=stand_in(tmp_path))
    assert not list(lacking(there))
    (none,) = check_engine(there.model_copy(update={"workers": 0}), bind(TopKReverseKL()), EvaluateRecipe())
    assert "`rollout.workers` is 0" in none
    dense, mixture = (AutoConfig.from_pretrained(make_model(tmp_path, family)) for family in ("qwen3", "mimo_v2_flash"))
    lora = LoRA(rank=2)
    for transport, config, own, device in (
        ("adapter", dense, None, "cpu"),
        ("adapter", dense, LoRA(rank=2, embeddings=True), "cpu"),
        ("adapter", mixture, lora, "cpu"),
        ("reload", mixture, None, "cpu"),
    ):
        problems = list(refused(vllm_recipe(transport=transport), config, own, device))
        assert [problem for problem in problems if problem.startswith("`rollout.vllm.transport`")]
    for transport, config, own, device in (
        ("auto", mixture, lora, "cpu"),
        ("adapter", dense, lora, "cpu"),
        ("reload", mixture, None, "cuda"),
        ("restart", mixture, None, "cpu"),
    ):
        assert not list(refused(vllm_recipe(transport=transport), config, own, device))
    extra = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 3}}
    for device, draws, reason in (
        ("cpu", 20_000, "draws from another distribution"),
        ("cuda", 0, "`rollout.vllm.test_draws` is 0"),
    ):
        (problem,) = refused(vllm_recipe(extra=extra, test_draws=draws), mixture, None, device)
        assert problem.startswith("`rollout.vllm.extra` has `speculative_config`")
        assert reason in problem
    assert not list(refused(vllm_recipe(extra=extra), mixture, None, "cuda"))


def test_mopd_check_asks_the_engine_about_the_models_that_it_samples(tmp_path: Path) -> None:
    mixture = {**CONFIG, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    made = {"architecture": "qwen3_moe", "config": mixture, "vocabulary": 100}
    vllm = {"python": stand_in(tmp_path), "transport": "reload"}
    sentences = problems(
        tmp_path / "out",
        device="cpu",
        stages={"base": {"from": made}, "math": {"from": "stage:base"}},
        rollout={"engine": "vllm", "workers": 1, "vllm": vllm},
    )
    assert [sentence.split(" ")[0] for sentence in sentences] == ["`rollout.vllm.transport`"]


# ---- servers


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [make_model(folder / str(seed), "qwen3", seed=seed) for seed in (0, 1)]


class Running:
    """Servers of stand-ins and a sampler of a student, whose faults a test orders."""

    def __init__(
        self, folder: Path, path: str, *, servers: int = 1, draws: int = 0, transport: Transport = "reload"
    ) -> None:
        self.folder, self.said = folder, list[str]()
        python = stand_in(folder)
        self.servers = VLLMServers(
            [ServerSpec(i, python, "cpu", "float32", str(folder / "logs"), 0.0, {}) for i in range(servers)],
            faults=FAULTS, limit_seconds=30.0, own=owned_here, share=lambda state: state, say=self.said.append,
        )  # fmt: skip
        self.servers.transport = transport
        self.servers.rows = fixed_rows(AutoConfig.from_pretrained(path), context=128)
        self.servers.hold(HeldModel(path))
        student = _Student(self.servers, DECODING, draws=draws, vocabulary=VOCABULARY - 4, tested=[])
        self.sampler = _sampler(SETTINGS, self.servers, student)

    def order(self, fault: str) -> None:
        (self.folder / fault).touch()

    def load(self, path: str, version: int) -> torch.nn.Module:
        module = load_model(path, device="cpu", dtype="float32")
        self.sampler.load_weights(InProcess(module), version=version)
        return module

    def written(self, n: int = 4, **how: Any) -> list[list[int]]:
        rng = np.random.default_rng(0)
        prompts = [Prompt("math", str(i), tuple(rng.integers(2, 60, 5).tolist()), "", "") for i in range(n)]
        self.rollouts = [r for microbatch in self.sampler.sample(prompts, step=2, **how) for r in microbatch]
        return [rollout.token_ids.tolist() for rollout in self.rollouts]

    def notes(self, key: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "logs" / "published.jsonl").read_text().splitlines()]
        return [row for row in rows if key in row]


@pytest.fixture
def running(tmp_path: Path, paths: list[str]) -> Iterator[Running]:
    running = Running(tmp_path, paths[0])
    yield running
    running.servers.close()
    assert not [child for child in psutil.Process().children() if "stand_in" in " ".join(child.cmdline())]


def test_it_writes_with_the_weights_of_each_version(running: Running, paths: list[str]) -> None:
    for version, path in enumerate((*paths, paths[0])):
        module = running.load(path, version)
        running.written()
        assert [r.index for r in running.rollouts] == [*range(12)]
        assert {r.version for r in running.rollouts} == {(version, version)}
        for rollout in running.rollouts:
            ids_1T = torch.from_numpy(rollout.token_ids).long()[None]
            logits_TV = (
                align_logits(module(input_ids=ids_1T).logits)[0, :, : DECODING.vocabulary] / DECODING.temperature
            )
            own_T = torch.log_softmax(logits_TV, -1).gather(1, ids_1T[0][:, None])[:, 0].detach().numpy()
            np.testing.assert_allclose(rollout.sampler_logprobs[rollout.loss_mask], own_T[rollout.loss_mask], atol=1e-4)
            assert (rollout.finish == "eos") == (rollout.token_ids[-1] in DECODING.end_token_ids)
    assert [row["published"] for row in running.notes("published")] == [0, 1, 2]
    assert max(row["largest_difference"] for row in running.notes("published")) < 1e-4
    running.load(paths[0], 2)  # which it holds
    assert len(running.notes("published")) == 3
    greedy = running.written(greedy=True)
    assert [len(greedy), [r.group for r in running.rollouts]] == [4, [0, 1, 2, 3]]


def test_a_publish_that_is_skipped_ends_the_run(running: Running, paths: list[str]) -> None:
    running.load(paths[0], 0)
    running.order("skip")
    with pytest.raises(RunError, match="to which version 1 was published by reload, does not hold the student's"):
        running.load(paths[1], 1)


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_server_that_dies_or_hangs_is_started_again_and_nothing_is_lost(
    running: Running, paths: list[str], fault: str
) -> None:
    running.load(paths[0], 0)
    running.load(paths[1], 1)
    before = running.written()
    if fault == "hang":
        running.servers._limit_seconds = 3.0
    running.order(fault)
    assert running.written() == before  # by the newest weights, and with the same seeds
    assert [row["lost"] for row in running.notes("lost")] == [0]
    assert [row["published"] for row in running.notes("published")] == [0, 1, 1]
    assert len(running.said) == 1


def test_one_that_is_lost_again_and_again_ends_the_run(
    running: Running, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.load(paths[0], 0)
    monkeypatch.setattr(running.servers, "say", lambda _: running.order("die"))
    running.order("die")
    with pytest.raises(RunError, match="was killed by SIGKILL at `write`"):
        running.written()
    assert len(running.notes("lost")) == FAULTS.retries


def test_one_that_does_not_start_ends_the_run_with_the_end_of_its_log(tmp_path: Path, paths: list[str]) -> None:
    stand_in(tmp_path)
    (tmp_path / "broken").touch()
    running = Running(tmp_path, paths[0])
    with pytest.raises(ServerRefused, match="no kernel image is available"):
        running.load(paths[0], 0)
    with pytest.raises(ServerRefused, match="exit code 1"):  # which is not tried again
        running.load(paths[0], 0)
    assert len((tmp_path / "logs" / "server-0.log").read_text().split("vLLM would start")) == 2
    running.servers.close()


def test_a_restart_starts_a_server_on_the_weights_and_not_before(tmp_path: Path, paths: list[str]) -> None:
    running = Running(tmp_path, paths[0], transport="restart")
    assert not (tmp_path / "logs").exists()
    for version, path in enumerate(reversed(paths)):
        module = running.load(path, version)
        greedy = running.written(greedy=True)
        sampler = StudentSampler(DECODING, samples_per_prompt=1, batch_size=8)
        sampler.load_weights(InProcess(module), version=version)
        prompts = [rollout.prompt for rollout in running.rollouts]
        assert [r.token_ids.tolist() for m in sampler.sample(prompts, step=2, greedy=True) for r in m] == greedy
    started = (tmp_path / "logs" / "server-0.log").read_text().count("vLLM would start")
    assert (started, running.notes("started")) == (2, [])
    running.servers.close()


def test_draws_from_another_distribution_end_the_run(tmp_path: Path, paths: list[str]) -> None:
    running = Running(tmp_path, paths[0], draws=800)
    module = running.load(paths[0], 0)
    assert [row["problem"] for row in running.notes("draws")] == [None]
    running.load(paths[0], 1)  # it is asked once
    assert len(running.notes("draws")) == 1
    running.order("hot")
    with pytest.raises(RunError, match="does not draw from the student's distribution"):
        running.servers.check_draws(InProcess(module), DECODING, draws=800, vocabulary=VOCABULARY - 4)
    running.servers.close()


def test_two_servers_share_a_batch_and_leave_no_file(tmp_path: Path, paths: list[str]) -> None:
    running = Running(tmp_path, paths[0], servers=2)
    running.load(paths[0], 0)
    written = running.written()
    assert [r.index for r in running.rollouts] == [*range(12)]
    alone = Running(tmp_path / "alone", paths[0])
    alone.load(paths[0], 0)
    assert alone.written() == written
    folders = [s._owner._server._folder for r in (running, alone) for s in r.servers._servers]  # type: ignore[union-attr]
    for each in (running, alone):
        each.servers.close()
    assert [folder for folder in folders if folder is None or folder.exists()] == []


@pytest.mark.usefixtures("cluster")
def test_servers_live_in_hosts_of_rays_and_are_shared_by_the_samplers_of_a_student(
    tmp_path: Path, paths: list[str]
) -> None:
    rollout = RolloutRecipe(engine="vllm", workers=2, vllm=VLLMRecipe(python=stand_in(tmp_path), test_draws=200))
    engine = VLLM.bound(rollout, faults=FAULTS, folder=str(tmp_path / "run"), say=lambda _: None)
    processes = SamplerProcesses(2, "cpu", "float32", limit_seconds=60.0)
    module = load_model(paths[1], device="cpu", dtype="float32")
    asked = [Prompt("math", str(i), tuple(range(2, 9 + i)), "", "") for i in range(3)]

    def written(sampler: Sampler, **how: Any) -> list[list[int]]:
        return [r.token_ids.tolist() for m in sampler.sample(asked, step=1, **how) for r in m]

    with ExitStack() as closing:
        make = engine.of_student(StudentModel(FrozenModel(paths[0]), processes), closing)  # type: ignore[misc]
        train, measured = make(SETTINGS), make(replace(SETTINGS, samples_per_prompt=1))
        for sampler in (train, measured):
            sampler.load_weights(InProcess(module), version=4)
        before, greedy = written(train), written(measured, greedy=True)
        assert len(before) == 9
        stand_ins(tmp_path)[0].parent().kill()  # type: ignore[union-attr]
        assert (written(train), written(measured, greedy=True)) == (before, greedy)
        frozen = engine.of_checkpoints(processes, SETTINGS, closing)(FrozenModel(paths[1]))  # type: ignore[misc]
        assert written(frozen, greedy=True) == greedy
        notes = [json.loads(line) for line in (tmp_path / "run" / "vllm" / "published.jsonl").read_text().splitlines()]
        published = [row["server"] for row in notes if "published" in row]
        assert (sorted(published[:2]), len(published)) == ([0, 1], 3)
        assert sum("draws" in row for row in notes) == 1
        assert sum("died" in row.get("why", "") for row in notes if "lost" in row) == 1
    deadline = Deadline(60)
    while stand_ins(tmp_path) and deadline.waits():
        pass
    assert stand_ins(tmp_path) == []


def stand_ins(folder: Path) -> list[psutil.Process]:
    """The processes of stand-ins in a folder."""
    running = []
    for child in psutil.process_iter():
        try:
            if f"{folder}/stand_in.py" in " ".join(child.cmdline()):
                running.append(child)
        except psutil.Error:
            continue
    return running


def test_check_says_what_is_missing_here_and_not_of_another_machine(tmp_path: Path) -> None:
    loss, missing = bind(TopKReverseKL(estimator="topk_reverse_kl")), vllm_recipe(python=str(tmp_path / "none"))
    (problem,) = check_engine(missing, loss, EvaluateRecipe(samples_per_prompt=2, stop_strings=("a",)))
    assert "`rollout.vllm.python`" in problem
    assert not list(check_engine(missing, loss, EvaluateRecipe(), elsewhere=True))
    (warning,) = engine_warnings(missing)
    assert "vllm is not `keyed`" in warning


def test_a_process_ends_with_who_started_it(tmp_path: Path) -> None:
    """The file that vLLM's Python runs, without a vLLM: its parent's end of the pipe closes, and it is gone."""
    ours, theirs = socket.socketpair()
    (tmp_path / "files").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-I", process.__file__, str(theirs.fileno()), str(tmp_path / "files")],
        stdin=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    ours.sendall(b'{"call": "start", "arguments": {"arguments": {}}}\n')
    assert "No module named 'vllm'" in json.loads(ours.makefile("rb").readline())["failed"]
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(30) == 0
    assert not (tmp_path / "files").exists()

"""Rollout engines: an engine from a user's own file writes all that is sampled; what the factory makes of a row."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import check, problems, recipe, save_model, tokenizer_of, warnings
from student_kit import VOCABULARY, make_model

from mopd.distill.models.adapters import with_trained_adapter
from mopd.distill.models.load import load_model
from mopd.distill.payloads import Support
from mopd.distill.recipe import LoRA, RolloutRecipe
from mopd.distill.tracking.console import Progress
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Prompt, Rollout, Sampler, UserError
from mopd.recipes.check.plugins import engine_warnings
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.run.baselines import measure_frozen
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.preflight import Candidate, preflight
from mopd.rollouts.engines import ENGINES, engine_of
from mopd.rollouts.engines.base import Decoding, FrozenModel, SamplerProcesses, SamplerSettings, StudentModel
from mopd.rollouts.engines.in_process import InProcess
from mopd.rollouts.engines.workers import SamplerWorker, as_array, as_tensor
from mopd.rollouts.sampler import Samplers, make_samplers, sampler_settings
from mopd.teachers.dry_run import DryRun

PARROT = '''
"""An engine that writes EOS after every prompt, and notes in a file who asked for what."""
import numpy as np
from mopd import Rollout, RolloutEngine


class Parrot:
    def __init__(self, settings, log):
        self.settings, self.log, self.version = settings, log, 0

    def load_weights(self, weights, *, version):
        self.version = version

    def sample(self, prompts, *, step, greedy=False):
        samples = 1 if greedy else self.settings.samples_per_prompt
        with open(self.log, "a") as log:
            print(samples * len(prompts), file=log)
        for group, prompt in enumerate(prompts):
            ids = np.array([*prompt.token_ids, self.settings.decoding.end_token_ids[0]], dtype=np.int32)
            mask = np.arange(len(ids)) == len(ids) - 1
            logprobs = np.where(mask, -0.5, 0).astype(np.float32)
            yield [
                Rollout(prompt, ids, mask, logprobs, "eos", (self.version, self.version), group, group * samples + k)
                for k in range(samples)
            ]


def of_student(student, closing):
    closing.callback(lambda: open(LOG, "a").write("student closed\\n"))
    return lambda settings: Parrot(settings, LOG)


def of_checkpoints(processes, settings, closing):
    closing.callback(lambda: open(LOG, "a").write("checkpoints closed\\n"))
    return lambda model: Parrot(settings, LOG)


ENGINE = RolloutEngine(of_student=of_student, of_checkpoints=of_checkpoints, keyed=True)
UNKEYED = RolloutEngine(of_student=of_student)
BLIND = RolloutEngine(of_checkpoints=of_checkpoints)
IN_SERVERS = RolloutEngine(
    of_student=of_student, keyed=True, speculates=True, needs_workers=True, workers_measure=True, asks_again=True,
    host_bytes={"parrot": 5e9},
)
OTHER = 3
'''


@pytest.fixture
def parrot(tmp_path: Path) -> tuple[str, Path]:
    """A file with an engine, and the file in which it notes what it wrote."""
    (tmp_path / "parrot.py").write_text(PARROT.replace("LOG", repr(str(tmp_path / "log"))))
    return f"{tmp_path}/parrot.py", tmp_path / "log"


class Agreeing:
    """A pool whose teacher says of every token what the sampler said, so that it may teach."""

    def dry_run(self, name: str, rollouts: Sequence[Rollout]) -> DryRun:
        answer = tuple(rollout.sampler_logprobs for rollout in rollouts)
        return DryRun((answer, answer), None)


def test_an_engine_of_a_users_own_writes_evaluations_baselines_and_preflight(
    tmp_path: Path, parrot: tuple[str, Path]
) -> None:
    path, log = parrot
    made = recipe(
        teachers={"math": {"model": "./elsewhere"}},
        evaluate={"validation_prompts": 3, "test_prompts": 5},
        rollout={"samples_per_prompt": 2},
    )
    tokenizer = tokenizer_of("arithmetic")
    model = save_model(tmp_path / "model", tokenizer)
    tasks = tasks_of(made.domains, tokenizer)
    source = prompt_source(made.domains, tasks, tokenizer, seed=0)

    def samplers(closing: ExitStack) -> Samplers:
        processes = SamplerProcesses(0, "cpu", "float32")
        return make_samplers(
            engine_of(f"{path}:ENGINE", workers=0),
            settings=sampler_settings(made.rollout, tokenizer, model=model, seed=0, support=None),
            student=StudentModel(FrozenModel(model), processes),
            frozen=processes,
            closing=closing,
        )

    with Progress() as progress, Tracker(tmp_path) as tracker, ExitStack() as closing:
        costs = Costs(model, {"math": model}, writes=True)
        evaluator = Evaluator(
            made.evaluate,
            tmp_path,
            teachers={"math": {"math": 1.0}},
            written_with=(),
            source=source,
            tasks=tasks,
            tokenizer=tokenizer,
            tracker=tracker,
            costs=costs,
        )
        context = RunContext(tmp_path, "parrot", "cpu", progress, threading.Event())
        measure_frozen({"base": FrozenModel(model), "teachers/math": FrozenModel(model)}, context, evaluator, samplers)
        live = samplers(closing)
        evaluator.evaluate("student", step=0, split="validation", sampler=live.evaluate)
        assert log.read_text().split("\n") == ["3", "5", "3", "5", "checkpoints closed", "3", ""]
        log.write_text("")
        preflight(
            tmp_path,
            pool=Agreeing(),  # type: ignore[arg-type]
            sampler=live.train,
            prompts=source(0),
            rows=evaluator.rows,
            candidates=[Candidate("math", ("math",), "float32", is_student=False, can_write=True)],
            say=lambda shown: None,
        )
    assert log.read_text().split("\n") == ["8", "student closed", ""]
    asked = {(row.model, row.split) for row in evaluator.rows}
    assert asked == {(name, split) for name in ("base", "teachers/math") for split in ("validation", "test")} | {
        ("student", "validation")
    }
    assert {row.text for row in evaluator.rows} == {""}
    assert json.loads((tmp_path / "preflight.json").read_text())["rollouts"] == 8


def test_what_is_no_engine_is_refused_by_its_name(parrot: tuple[str, Path]) -> None:
    path, _ = parrot
    for name in ("OTHER", "BLIND", "NOTHING"):
        with pytest.raises(UserError, match=f"`rollout.engine` is .*:{name}'"):
            engine_of(f"{path}:{name}", workers=0)
    (warning,) = engine_warnings(RolloutRecipe(engine=f"{path}:UNKEYED"))
    assert warning.startswith("`rollout.engine`")
    assert "UNKEYED is not `keyed`" in warning
    assert not [*engine_warnings(RolloutRecipe(engine=f"{path}:ENGINE")), *engine_warnings(RolloutRecipe())]
    assert engine_of("in_process", workers=0) is ENGINES["in_process"]
    assert engine_of("in_process", workers=2) is ENGINES["workers"]


def test_a_row_says_which_leaves_it_reads_and_what_its_processes_take(tmp_path: Path, parrot: tuple[str, Path]) -> None:
    """Two engines of one file, of which only the rows differ."""
    path, _ = parrot
    changes: dict[str, Any] = {
        "method": "supervised", "faults": {"retries": 7}, "mtp": {"heads": 1, "drafts": 1}, "teachers": {},
        "domains": {"math": {"task": "arithmetic", "prompts": 4}},
    }  # fmt: skip

    def idle(name: str) -> set[str]:
        made = recipe(**changes, rollout={"engine": name, "workers": 2, "vllm": {"test_draws": 5}})
        return {warning.split("`")[1] for warning in warnings(made)} & {*read, "rollout.vllm.test_draws"}

    read = {"mtp.drafts", "rollout.workers", "faults.retries"}
    assert idle(f"{path}:ENGINE") == {*read, "rollout.vllm.test_draws"}
    assert idle(f"{path}:IN_SERVERS") == {"rollout.vllm.test_draws"}
    assert idle("in_process") == {*read - {"mtp.drafts"}, "rollout.vllm.test_draws"}
    assert idle("vllm") == {"mtp.drafts"}
    for rollout in ({"engine": f"{path}:IN_SERVERS"}, {"engine": f"{path}:ENGINE", "workers": 1}):
        (problem,) = problems(tmp_path / "out", rollout=rollout)
        assert "`rollout.workers` is" in problem
    plan = check(recipe(rollout={"engine": f"{path}:IN_SERVERS", "workers": 2}), tmp_path / "out")
    (sampler,) = (process for process in plan.processes if process.name == "sampler")
    assert sampler.host["parrot"] == 5e9


# ---- what the factory makes


SETTINGS = SamplerSettings(
    Decoding(
        max_new_tokens=6,
        temperature=1.0,
        greedy=False,
        seed=3,
        step=0,
        end_token_ids=(1,),
        pad_token_id=0,
        support=Support(2, (1,), "student"),
    ),
    samples_per_prompt=3,
    batch_size=4,
)
HERE = SamplerProcesses(0, "cpu", "float32")


def samplers_of(path: str, closing: ExitStack) -> Samplers:
    return make_samplers(
        ENGINES["in_process"],
        settings=SETTINGS,
        student=StudentModel(FrozenModel(path), HERE),
        frozen=HERE,
        measured_support=Support(4, forced=()),
        closing=closing,
    )


def prompts(n: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt("math", str(i), tuple(rng.integers(2, VOCABULARY, 5).tolist()), "", "") for i in range(n)]


def written(sampler: Sampler, **how: Any) -> list[Rollout]:
    return [rollout for microbatch in sampler.sample(prompts(3), step=2, **how) for rollout in microbatch]


def test_training_and_measuring_write_each_in_their_way(tmp_path: Path) -> None:
    """Measured as in training: one completion a prompt, keyed by its own number, with the tokens that are compared."""
    path = make_model(tmp_path, "llama")
    with ExitStack() as closing:
        samplers = samplers_of(path, closing)
        weights = InProcess(load_model(path, device="cpu", dtype="float32"))
        samplers.train.load_weights(weights, version=5)
        samplers.evaluate.load_weights(weights, version=6)
        train, measured = written(samplers.train), written(samplers.evaluate)
        greedy = written(samplers.evaluate, greedy=True)
    assert ([r.version for r in train], [r.version for r in measured]) == ([(5, 5)] * 9, [(6, 6)] * 3)
    widths = [None if r.support_ids is None else r.support_ids.shape[1] for r in (train[0], measured[0], greedy[0])]
    assert widths == [3, 4, None]
    for sample, other in zip(train[:3], measured, strict=True):  # rollout i of a step draws the same numbers
        assert sample.index == other.index
    assert train[0].token_ids.tolist() == measured[0].token_ids.tolist()


def test_a_frozen_model_writes_as_the_student_with_its_weights(tmp_path: Path) -> None:
    paths = [make_model(tmp_path / str(seed), "llama", seed=seed) for seed in (0, 1)]
    with ExitStack() as closing:
        samplers = samplers_of(paths[0], closing)
        for path in (*paths, paths[0]):
            module = load_model(path, device="cpu", dtype="float32")
            samplers.evaluate.load_weights(InProcess(module), version=0)
            expected = [r.token_ids.tolist() for r in written(samplers.evaluate, greedy=True)]
            model = FrozenModel(path)
            for sampler in (samplers.of(model), samplers.writer(model, HERE)):
                assert [r.token_ids.tolist() for r in written(sampler, greedy=True)] == expected
            assert samplers.of(model) is samplers.of(model)  # it is held, and not loaded again


def test_who_holds_a_frozen_model(parrot: tuple[str, Path]) -> None:
    """The run's engine where it can, and else a shipped one; a served model is asked where it is."""
    path, _ = parrot
    adapted, endpoint = FrozenModel("a", adapter="b"), SimpleNamespace()
    served = replace(adapted, endpoint=endpoint)  # type: ignore[arg-type]
    two = replace(HERE, count=2)
    own = engine_of(f"{path}:ENGINE", workers=0)
    with ExitStack() as closing:
        of_own = make_samplers(own, settings=SETTINGS, frozen=two, closing=closing)
        of_students = make_samplers(ENGINES["in_process"], settings=SETTINGS, frozen=two, closing=closing)
        assert of_own._engine_of(FrozenModel("a"), two) is own
        assert of_own._engine_of(adapted, two) is ENGINES["workers"]
        assert of_own._engine_of(adapted, HERE) is ENGINES["in_process"]
        assert of_students._engine_of(FrozenModel("a"), two) is ENGINES["workers"]
        assert of_own._engine_of(served, two) is of_students._engine_of(served, two) is ENGINES["served"]
        with pytest.raises(ValueError, match="without a student"):
            _ = of_own.train


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_weights_arrive_as_they_were_sent(dtype: torch.dtype) -> None:
    for shape in ((), (3,), (2, 5)):
        sent = (100 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
        arrived = as_tensor(*as_array(sent))
        assert arrived.dtype == dtype
        assert torch.equal(arrived, sent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_worker_takes_on_every_weight_in_the_students_dtype(tmp_path: Path, dtype: str) -> None:
    initial, later = (make_model(tmp_path / str(seed), "llama", seed=seed) for seed in (0, 1))
    student = load_model(later, device="cpu", dtype=dtype)
    worker = SamplerWorker("cpu", dtype)
    worker.load(FrozenModel(initial))
    assert worker.publish({name: as_array(tensor) for name, tensor in student.state_dict().items()}, 3) == 3
    assert worker.model is not None
    held = worker.model.state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(held[name], tensor), name
    with pytest.raises(RuntimeError, match="Missing key"):
        worker.publish({}, 4)


def test_a_worker_takes_on_an_adapter_alone_and_answers_as_the_student(tmp_path: Path) -> None:
    base, lora = make_model(tmp_path, "qwen3"), LoRA(rank=2)
    student = with_trained_adapter(load_model(base, device="cpu", dtype="float32"), lora, base=base).eval()
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    worker = SamplerWorker("cpu", "float32")
    worker.load(FrozenModel(base), lora)
    sent = {name: as_array(tensor) for name, tensor in InProcess(student).adapter_state().items()}
    assert sum(array.size for _, array in sent.values()) < 0.2 * sum(w.numel() for w in student.parameters())
    assert worker.publish(sent, 3, True) == 3
    ids = torch.arange(12)[None]
    assert worker.model is not None
    assert torch.equal(worker.model(input_ids=ids).logits, student(input_ids=ids).logits)
    with pytest.raises(ValueError, match="weights"):
        worker.publish({}, 4, True)

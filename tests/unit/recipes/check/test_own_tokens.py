"""`mopd check` of teachers that score their own tokens: what it refuses, what it tells, and the same with --deep."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import check, problems, recipe, save_model, tokenizer_of
from tokenizers import Tokenizer, models
from tokenizers_kit import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mopd.distill.types import Prompt
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check_command import plan_record
from mopd.recipes.evaluation.own_tokens import InOwnTokens
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.teacher_prompts import prompts_in
from mopd.recipes.run.check_deep import deep_findings
from mopd.rollouts.engines import ENGINES
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses
from mopd.rollouts.sampler import make_samplers, sampler_settings
from mopd.rollouts.tasks import TASKS

TEXTS = [f"[x * {a} for x in v if x % {b} == 0] sorted(v)\n" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, and a teacher of another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_model(folder / "student", tokenizer_of("list_programs", "arithmetic"), initializer_range=0.5)
    other: Any = byte_level(TEXTS, 330)
    save_model(folder / "other", other, eos_token_id=other.get_vocab()["<eos>"], initializer_range=0.5)
    return folder


def changes(folder: Path, task: Any = "list_programs", **more: Any) -> dict[str, Any]:
    teacher = {"model": str(folder / "other"), "tokenizer": "own"}
    return {
        "student": {"model": str(folder / "student")},
        "domains": {"code": {"task": task, "teacher": "code", "prompts": 4}},
        "teachers": {"code": teacher},
        "stages": {},
        "loss": {"estimator": "chunked_reverse_kl"},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 4, "test_prompts": 8},
        **more,
    }


def test_without_the_leaf_another_tokenizer_is_refused_and_the_leaf_named(folder: Path, tmp_path: Path) -> None:
    teachers = {"code": {"model": str(folder / "other")}}
    found = problems(tmp_path, **changes(folder, teachers=teachers))
    assert all("or let it score its own: `teachers.code.tokenizer: own` (docs/tokenizers.md)" in each for each in found)


def test_the_share_that_aligns_is_that_of_a_loop_over_gold_answers(folder: Path, tmp_path: Path) -> None:
    plan: Plan = check(recipe(**changes(folder)), tmp_path / "run")
    count = plan.aligned["code"]
    student, other = (AutoTokenizer.from_pretrained(folder / name) for name in ("student", "other"))
    alike = tokens = 0
    for i in range(64):
        answer = TASKS["list_programs"].example(seed=0, split="train", index=i, easy=False).answer
        ends = []
        for tokenizer in (student, other):
            texts = [tokenizer.decode([token]) for token in tokenizer(answer, add_special_tokens=False)["input_ids"]]
            stops = np.cumsum([len(text) for text in texts]).tolist()
            ends.append({*zip([0, *stops], stops, strict=False)})  # (from, to) of each token; plain letters alone
        alike += len(ends[0] & ends[1]) + 1
        tokens += len(ends[0]) + 1
    assert (count.tokens, count.alike) == (tokens, alike)
    assert 0.1 < count.share < 0.95
    record = plan_record(plan)["aligned"]["code"]
    assert record == {"tokens": tokens, "alike": alike, "chunked": tokens, "unscored": {}}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"loss": {"estimator": "full_reverse_kl"}}, "take one of chunked_reverse_kl, k2, policy_gradient"),
        ({"loss": {"estimator": "topk_reverse_kl"}}, "compares distributions over the student's tokens"),
        ({"teachers": {"code": {"model": "self", "tokenizer": "own"}}}, "whose tokenizer is the student's"),
        (
            {
                "loss": {"estimator": "policy_gradient", "extrapolation": 1.25, "reference": "anchor"},
                "anchor": {"model": "self"},
            },
            "`loss.extrapolation` 1.25 leads away from a reference token by token",
        ),
        ({"task": {"environment": "calculator"}}, "is an environment of several turns"),
    ],
)
def test_what_cannot_be_had_of_such_a_teacher_is_refused(
    folder: Path, tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    given = changes(
        folder, more.get("task", "list_programs"), **{k: more[k] for k in ("loss", "teachers") if k in more}
    )
    if "anchor" in more:
        given["teachers"]["anchor"] = more["anchor"]
    assert any(
        why in problem and "`teachers.code.tokenizer` is own" in problem for problem in problems(tmp_path, **given)
    )


def test_a_method_without_graders_and_a_tokenizer_without_bytes_are_refused(folder: Path, tmp_path: Path) -> None:
    off_policy = changes(folder, method="off_policy", loss={"estimator": "nll"})
    assert any("which is for who grades" in problem for problem in problems(tmp_path, **off_policy))
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "<eos>": 1, "a": 2}, unk_token="[UNK]"))
    broken: Any = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="[UNK]")
    save_model(tmp_path / "words", broken)
    teachers = {"code": {"model": str(tmp_path / "words"), "tokenizer": "own"}}
    found = problems(tmp_path, **changes(folder, teachers=teachers))
    assert any("its tokenizer" in problem and "marks words with '##'" in problem for problem in found)


def test_the_leaf_where_the_tokenizer_is_the_students_is_warned_of(folder: Path, tmp_path: Path) -> None:
    teachers = {"code": {"model": str(folder / "student"), "tokenizer": "own"}}
    plan = check(recipe(**changes(folder, teachers=teachers)), tmp_path / "run")
    assert any("its tokenizer is the student's" in warning for warning in plan.warnings)


def test_a_teacher_of_another_tokenizer_is_measured_in_its_own_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "other")
    settings = sampler_settings(
        recipe(**changes(folder)).rollout, tokenizer, model=str(folder / "other"), seed=0, support=None
    )

    with ExitStack() as closing:
        here = SamplerProcesses(0, "cpu", "float32")
        samplers = make_samplers(ENGINES["in_process"], settings=settings, frozen=here, closing=closing)
        sampler = InOwnTokens(
            samplers.of(FrozenModel(str(folder / "other"))), prompts_in("code", tokenizer, TASKS), tokenizer
        )
        asked = Prompt("list_programs", "list_programs/0", (5, 6), "v = [1, 2]\n", "2")
        (rollout,) = [r for microbatch in sampler.sample([asked], step=0, greedy=True) for r in microbatch]
    ids = tokenizer("v = [1, 2]\n", add_special_tokens=False)["input_ids"]
    assert (rollout.prompt.id, list(rollout.prompt.token_ids)) == ("list_programs/0", ids)
    model = AutoModelForCausalLM.from_pretrained(folder / "other").eval()
    written: list[int] = []
    while len(written) < 40 and tokenizer.eos_token_id not in written:
        with torch.no_grad():
            written.append(int(model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1].argmax()))
    assert rollout.token_ids[rollout.loss_mask].tolist() == written
    closed = written[-1] == tokenizer.eos_token_id
    assert sampler.decode(rollout) == tokenizer.decode(written[: len(written) - closed])


def test_check_deep_tries_it_out_in_its_own_tokens(folder: Path, tmp_path: Path) -> None:
    (finding,) = deep_findings(resolve(recipe(**changes(folder))), tmp_path / "run")
    assert finding.verdict in ("usable", "warning"), finding
    assert "of the student's tokens are one of the teacher's, too" in finding.reason
    assert "% right, the student" in finding.reason

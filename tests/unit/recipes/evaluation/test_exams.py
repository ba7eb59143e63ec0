"""Answers of evaluations: stop strings, top-p and top-k against transformers', sampled scores beside greedy ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import save_model, tokenizer_of
from cli_kit import mopd
from recipe_kit import SMALL, refused
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TopKLogitsWarper, TopPLogitsWarper

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.recipe import EvaluateRecipe, RolloutRecipe
from mopd.distill.tracking.answers import TYPES, answers_path, read_answers, write_answers
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Prompt, Rollout
from mopd.recipes.check.plugins import check_engine
from mopd.recipes.evaluation.cache import SharedAnswers
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator, answer_rows, cut_at, exam_settings
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import likely_part
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.mixture import FixedMixture
from mopd.rollouts.prompts import PromptSource, Supply
from mopd.rollouts.sampler import sampler_settings
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import completion_text


def decoding(**changes: Any) -> Decoding:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "greedy": False, "seed": 0, "step": 0}
    return Decoding(**{**settings, **changes}, end_token_ids=(1,), pad_token_id=0)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.7), (12, 0.9), (None, 0.05), (1, None), (100, 1e-9)])
def test_the_likely_part_is_that_of_transformers(top_k: int | None, top_p: float | None) -> None:
    logits_BV = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (64, 50))).float()
    ours_BV = likely_part(logits_BV.log_softmax(-1), decoding(top_k=top_k, top_p=top_p))
    theirs_BV = logits_BV
    if top_k is not None:
        theirs_BV = TopKLogitsWarper(top_k)(None, theirs_BV)  # type: ignore[arg-type]
    if top_p is not None:
        theirs_BV = TopPLogitsWarper(top_p)(None, theirs_BV)  # type: ignore[arg-type]
    assert torch.equal(ours_BV == -torch.inf, theirs_BV == -torch.inf)
    assert torch.allclose(ours_BV.softmax(-1), theirs_BV.softmax(-1), atol=1e-6)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizer_of("arithmetic")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "model", tokenizer)


def sampler_of(model: str, tokenizer: PreTrainedTokenizerBase, evaluate: EvaluateRecipe) -> StudentSampler:
    rollout = RolloutRecipe(max_new_tokens=24, batch_size=7)
    settings = sampler_settings(rollout, tokenizer, model=model, seed=0, support=None, evaluate=evaluate)
    sampler = StudentSampler(settings.decoding, samples_per_prompt=1, batch_size=7, exam=settings.exam)
    sampler.load_weights(InProcess(AutoModelForCausalLM.from_pretrained(model)), version=0)
    return sampler


def prompts_of(tokenizer: PreTrainedTokenizerBase, count: int) -> list[Prompt]:
    source = PromptSource(
        {"math": Supply(TASKS["arithmetic"])}, tokenizer, seed=0, mixture=FixedMixture({"math": count})
    )
    return source.held_out("test", count, seed=0)["math"]


def flat(microbatches: Iterator[list[Rollout]]) -> list[Rollout]:
    return [rollout for microbatch in microbatches for rollout in microbatch]


def test_a_stop_string_ends_an_answer_where_it_is_whole(model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of(tokenizer, 20)
    whole = flat(sampler_of(model, tokenizer, EvaluateRecipe(samples_per_prompt=1)).examine(prompts, step=0, sample=3))
    texts = [completion_text(tokenizer, rollout) for rollout in whole]
    stop = max(texts, key=len)[4:6]
    stops = EvaluateRecipe(samples_per_prompt=1, stop_strings=(stop, "never written"))
    ended = flat(sampler_of(model, tokenizer, stops).examine(prompts, step=0, sample=3))
    for rollout, before, text in zip(ended, whole, texts, strict=True):
        written = completion_text(tokenizer, rollout)
        assert text.startswith(written)
        if stop in text:
            assert (rollout.finish, written.count(stop)) == ("stop", 1)
            assert cut_at(written, (stop,)) == cut_at(text, (stop,))
        else:
            assert (rollout.finish, written) == (before.finish, text)
    assert {rollout.finish for rollout in ended} >= {"stop"}


def test_samples_are_keyed_by_their_number_alone(model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts, hot = prompts_of(tokenizer, 9), EvaluateRecipe(samples_per_prompt=2, temperature=1.5)

    def written(sample: int | None, *, step: int = 0, evaluate: EvaluateRecipe = hot) -> list[list[int]]:
        rollouts = flat(sampler_of(model, tokenizer, evaluate).examine(prompts, step=step, sample=sample))
        return [rollout.token_ids.tolist() for rollout in rollouts]

    assert written(0) == written(0, step=7)
    assert written(0) != written(1)
    greedy = flat(sampler_of(model, tokenizer, hot).sample(prompts, step=3, greedy=True))
    assert written(None, step=3) == [rollout.token_ids.tolist() for rollout in greedy]
    assert written(0, evaluate=EvaluateRecipe(samples_per_prompt=1, top_k=1)) == written(None)


class Lucky:
    """A sampler whose greedy answers are wrong, and of whose four samples the odd ones are right."""

    def __init__(self, texts: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.texts, self.tokenizer = texts, tokenizer

    def examine(self, prompts: Sequence[Prompt], *, step: int, sample: int | None) -> Iterator[list[Rollout]]:
        answers = [f"{self.texts[p.id]}=,=1" if sample is not None and sample % 2 else "" for p in prompts]
        yield [self._rollout(p, text, i) for i, (p, text) in enumerate(zip(prompts, answers, strict=True))]

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        assert greedy
        yield from self.examine(prompts, step=step, sample=None)

    def _rollout(self, prompt: Prompt, text: str, index: int) -> Rollout:
        written = [1] if not text else [*self.tokenizer(text)["input_ids"]]  # type: ignore[misc]
        ids = np.array([*prompt.token_ids, *written], dtype=np.int32)
        mask = np.arange(len(ids)) >= len(prompt.token_ids)
        logprobs = np.zeros(len(ids), dtype=np.float32)
        return Rollout(prompt, ids, mask, logprobs, "length" if text else "eos", (0, 0), index, index)


def test_an_evaluation_notes_the_mean_of_the_samples_beside_the_greedy_answer(
    tmp_path: Path, model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = tokenizer_of("arithmetic", "ordering", vocabulary=200)
    settings = EvaluateRecipe(samples_per_prompt=4, stop_strings=("=,=",), validation_prompts=5, test_prompts=5)
    source = PromptSource({"math": Supply(TASKS["arithmetic"])}, tokenizer, seed=0, mixture=FixedMixture({"math": 4}))
    more: dict[str, Any] = {"teachers": {}, "source": source, "tasks": {"math": TASKS["arithmetic"]}}
    with Tracker(tmp_path) as tracker:
        evaluator = Evaluator(
            settings, tmp_path, written_with=(), tokenizer=tokenizer, tracker=tracker,
            costs=Costs(model, {}, writes=True), **more,
        )  # fmt: skip
        gold = {prompt.id: prompt.answer for prompt in evaluator.prompts["test"]["math"]}
        metrics = evaluator.evaluate("student", step=0, split="test", sampler=Lucky(gold, tokenizer))  # type: ignore[arg-type]
    assert (metrics["score/math"], metrics["sampled_score/math"]) == (0.0, 0.5)
    rows = [Evaluation(**json.loads(line)) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [(row.correct, row.sampled) for row in rows] == [(0.0, 0.5)] * 5
    (spent,) = [json.loads(line) for line in (tmp_path / "exams.jsonl").read_text().splitlines()]
    assert spent["tokens"] > 5 * 3, "what was sampled is counted"


def test_training_refuses_what_cuts_its_distribution(tmp_path: Path) -> None:
    for key, value in (("top_p", 0.9), ("top_k", 5)):
        why = f"`evaluate.{key}`"
        assert why in refused(tmp_path, f"{SMALL}rollout: {{{key}: {value}}}\n")


def test_an_engine_that_does_not_know_of_evaluations_is_refused_where_they_ask_for_more(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(
        "from mopd import RolloutEngine\nENGINE = RolloutEngine(of_student=lambda student, closing: None, keyed=True)\n"
    )
    from mopd.distill.loss.registry import bind
    from mopd.distill.recipe.schema.loss import FullReverseKL

    loss = bind(FullReverseKL())
    rollout = RolloutRecipe(engine=f"{tmp_path}/engine.py:ENGINE")
    assert list(check_engine(rollout, loss, EvaluateRecipe())) == []
    (problem,) = check_engine(rollout, loss, EvaluateRecipe(samples_per_prompt=2))
    assert "evaluate.samples_per_prompt" in problem


def test_the_fingerprint_changes_with_what_answers_depend_on_alone() -> None:
    assert exam_settings(EvaluateRecipe()) == exam_settings(EvaluateRecipe(temperature=0.3)) == ()
    asked = [
        EvaluateRecipe(samples_per_prompt=2),
        EvaluateRecipe(samples_per_prompt=2, top_p=0.9),
        EvaluateRecipe(stop_strings=("\n",)),
    ]
    assert len({exam_settings(each) for each in asked}) == 3


def test_an_exam_keeps_prompts_texts_verdicts_and_reasons(
    tmp_path: Path, model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = tokenizer_of("arithmetic", "ordering", vocabulary=200)
    settings = EvaluateRecipe(samples_per_prompt=2, validation_prompts=5, test_prompts=5)
    source = PromptSource({"math": Supply(TASKS["arithmetic"])}, tokenizer, seed=0, mixture=FixedMixture({"math": 4}))
    more: dict[str, Any] = {"teachers": {}, "source": source, "tasks": {"math": TASKS["arithmetic"]}}

    def evaluator_in(folder: Path, tracker: Tracker) -> Evaluator:
        costs = Costs(model, {}, writes=True)
        return Evaluator(settings, folder, written_with=(), tokenizer=tokenizer, tracker=tracker, costs=costs, **more)

    (tmp_path / "first").mkdir()
    with Tracker(tmp_path / "first") as tracker:
        evaluator = evaluator_in(tmp_path / "first", tracker)
        asked = {prompt.id: prompt for prompt in evaluator.prompts["test"]["math"]}
        sampler: Any = Lucky({prompt.id: prompt.answer for prompt in asked.values()}, tokenizer)
        evaluator.evaluate("candidates/0.5", step=0, split="test", sampler=sampler)
        answers, files = evaluator.answers("candidates/0.5"), evaluator.files("candidates/0.5", 0)
    rows = read_answers(files["test"])
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (name, sample) for sample in range(3) for name in asked
    ]
    for row in rows:
        prompt = asked[row["prompt_id"]]
        written = f"{prompt.answer}=,=1" if row["sample"] == 2 else ""
        verdict = TASKS["arithmetic"].verify(prompt, written)
        assert (row["prompt"], row["gold"], row["text"], row["verdict"]) == (
            prompt.text,
            prompt.answer,
            written,
            verdict,
        )
        assert (row["model"], row["step"], row["split"], row["domain"]) == ("candidates/0.5", 0, "test", "math")
        assert (row["truncated"], row["unjudged"], row["reason"]) == (bool(written), "", "")
    greedy = {row["prompt_id"]: row["verdict"] for row in rows if row["sample"] == 0}
    assert greedy == {row.prompt_id: row.correct for row in answers}

    # Taken over, by another run or as the student's, they are the same answers under another name.
    (tmp_path / "second").mkdir()
    with Tracker(tmp_path / "second") as tracker:
        other = evaluator_in(tmp_path / "second", tracker)
        other.take_over([replace(row, model="student", step=7) for row in answers], files)
        assert other.has_evaluated("student", 7, "test")
        taken = read_answers(other.files("student", 7)["test"])
    assert taken == [{**row, "model": "student", "step": 7} for row in rows]


def test_questions_of_two_domains_that_share_an_id_are_kept_as_they_were_asked(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """docs/tutored asks the problems of a task a second time, with their answers in front, under the same ids."""
    asked = {
        "math": [replace(prompt, domain="math") for prompt in prompts_of(tokenizer, 3)],
        "again": [replace(p, domain="again", text=f"{p.answer}, {p.text}") for p in prompts_of(tokenizer, 3)],
    }
    every = [prompt for prompts in asked.values() for prompt in prompts]
    assert len({prompt.id for prompt in every}) == 3
    rows = [Evaluation("base", 0, "test", prompt.domain, prompt.id, 1.0) for prompt in every]
    kept = [(row["domain"], row["prompt_id"], row["prompt"]) for row in answer_rows(asked, rows, [])]
    assert kept == [(prompt.domain, prompt.id, prompt.text) for prompt in every]


def test_answers_of_a_studys_stage_are_kept_with_their_texts(tmp_path: Path) -> None:
    shared, stage = SharedAnswers(tmp_path / "answers"), tmp_path / "stages-0" / "base-1234" / "student"
    stage.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    row = dict.fromkeys(TYPES, "") | {"model": "base", "step": 0, "sample": 0, "verdict": 1.0, "tokens": 2}
    files = {split: answers_path(tmp_path / "run", "base", 0, split) for split in ("validation", "test")}
    for split, path in files.items():
        write_answers(path, [row | {"truncated": False, "split": split, "text": split}])
    answers = [Evaluation("base", 0, "test", "math", "math/1", 1.0)]
    shared.keep(str(stage), "feed", answers, files)  # type: ignore[arg-type]
    assert [read.record() for read in shared.find("teachers/base", str(stage), "feed")] == [
        {**answers[0].record(), "model": "teachers/base"}
    ]
    kept = shared.files(str(stage), "feed")
    assert {split: read_answers(path)[0]["text"] for split, path in kept.items()} == {
        "validation": "validation",
        "test": "test",
    }
    assert shared.files("/somewhere/else", "feed") == {}


def test_eval_keeps_what_the_model_writes(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mopd("eval", model, "--tasks", "arithmetic", "--prompts", "6", "--answers", "kept/a.parquet")
    assert result.exit_code == 0, result.output
    assert "6/6" in result.stderr, "progress goes to standard error"
    assert "6/6" not in result.stdout
    rows = read_answers(Path("kept/a.parquet"))
    assert len({row["prompt_id"] for row in rows}) == len(rows) == 6
    assert all(row["prompt"].startswith("math") and row["gold"] for row in rows)

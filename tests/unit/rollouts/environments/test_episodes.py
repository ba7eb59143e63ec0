"""Rollouts of several turns: exact ids and masks, keyed randomness, limits, and environments that break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import save_model
from dialogue_kit import assert_recorded_as_a_plain_forward_has_it
from transformers import PreTrainedTokenizerBase

from mopd.distill.models.load import load_model
from mopd.distill.types import Prompt, Rollout, RunError, UserError
from mopd.recipes.resolve.initial import training_texts
from mopd.rollouts.engines.base import Decoding, ExamDecoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.environments import ENVIRONMENTS
from mopd.rollouts.environments.base import Environment, Step, ToolEpisode
from mopd.rollouts.environments.episodes import ATTEMPTS, EpisodeSampler, gold_episodes, with_episodes
from mopd.rollouts.environments.runner import Failed, Runner, Together
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.turns import PlainTurns
from mopd.rollouts.tokenizer import build_tokenizer, completion_text, to_prompt

EOS = 1


def made_task(environment: Environment, tokenizer: Any, *, domain: str = "calc", **limits: Any) -> EnvironmentTask:
    defaults: dict[str, Any] = {"turns": 4, "turn_tokens": 12, "tokens": 90, "seconds": 5.0}
    return EnvironmentTask(
        environment, domain=domain, turns=PlainTurns(tokenizer), limits=EpisodeLimits(**(defaults | limits))
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tasks = {name: made_task(environment, None) for name, environment in ENVIRONMENTS.items()}
    return build_tokenizer(training_texts(tasks, seed=0), 120)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("episodes") / "model", tokenizer, initializer_range=0.3)


def prompts(task: EnvironmentTask, tokenizer: PreTrainedTokenizerBase, n: int, domain: str = "calc") -> list[Prompt]:
    examples = [task.example(seed=0, split="train", index=i) for i in range(n)]
    return [to_prompt(tokenizer, domain=domain, example=example) for example in examples]


def one_list(sampler: Any, asked: Sequence[Prompt], **how: Any) -> list[Rollout]:
    return [rollout for microbatch in sampler.sample(asked, step=3, **how) for rollout in microbatch]


def test_a_conversation_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    task = made_task(ENVIRONMENTS["calculator"], tokenizer)
    (prompt,) = prompts(task, tokenizer, 1)
    (rollout,) = one_list(gold_episodes({"calc": task}, tokenizer, EOS), [prompt])
    first, second, last = task.script(prompt)
    between = [f"{eval(call[len('calculator(') : -1])};" for call in (first, second)]
    parts = [
        (prompt.text, False),
        (first, True),
        (between[0], False),
        (second, True),
        (between[1], False),
        (last, True),
    ]
    ids, mask = list[int](), list[bool]()
    for text, trained in parts:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert isinstance(own, list)
        own = [*own, EOS] if trained else own
        ids += own
        mask += [trained] * len(own)
    assert rollout.token_ids.tolist() == ids
    assert rollout.loss_mask.tolist() == mask
    record = rollout.episode
    assert record is not None
    assert (record.reward, record.ended, record.turns, record.tool_calls, record.tool_errors) == (1.0, "done", 3, 2, 0)
    shown = "".join(f"{text}<eos>" if trained else text for text, trained in parts[1:])  # not per token
    assert completion_text(tokenizer, rollout) == shown


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_scripts_of_shipped_environments_are_right_and_another_answer_is_not(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    task = made_task(ENVIRONMENTS[name], tokenizer)
    asked = prompts(task, tokenizer, 12)
    rollouts = one_list(gold_episodes({"calc": task}, tokenizer, EOS), asked)
    records = [rollout.episode for rollout in rollouts if rollout.episode is not None]
    assert [record.reward for record in records] == [1.0] * 12
    assert any(record.failed_first for record in records) == (name == "debug")
    assert task.verify_many(asked, [prompt.answer for prompt in asked]) == [1.0] * 12
    assert task.verify_many(asked, [f"{prompt.answer}0" for prompt in asked]) == [0.0] * 12
    splits = [{task.example(seed=0, split=s, index=i).text for i in range(30)} for s in ("train", "test")]
    assert not splits[0] & splits[1]


def test_what_is_asked_side_by_side_is_answered_in_batches() -> None:
    batches = list[int]()

    def doubled(jobs: Sequence[int]) -> list[int]:
        batches.append(len(jobs))
        if min(jobs) < 0:
            raise ValueError("negative")
        return [2 * job for job in jobs]

    together = Together(doubled)
    runner = Runner(5.0)
    asks = [lambda number=number: together(number) for number in range(100)]
    assert runner.ask(asks, lambda value: value) == [2 * number for number in range(100)]
    assert sum(batches) == 100
    assert len(batches) < 50
    # What a batch raises is raised in each of its jobs, and the next one goes on.
    failed, *_ = runner.ask([lambda: together(-1)], lambda value: value)
    assert isinstance(failed, Failed)
    assert failed.reason == "raised"
    assert runner.ask([lambda: together(4)], lambda value: value) == [8]


def student(
    path: str, task: EnvironmentTask, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
) -> EpisodeSampler:
    decoding = Decoding(16, 1.0, False, 7, 0, (EOS,), 0)
    engine = StudentSampler(decoding, samples_per_prompt=1, batch_size=batch_size)
    engine.load_weights(InProcess(load_model(path, device="cpu", dtype="float32")), version=3)
    return EpisodeSampler(
        engine, {"calc": task}, tokenizer, samples_per_prompt=2, max_new_tokens=16, end_token_ids=(EOS,)
    )


class Echo:
    """Answers every message with what it said and an exclamation, three times; the fourth ends it."""

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
        told: list[str] = []

        async def step(message: Any) -> Step:
            told.append(str(message["content"]))
            await asyncio.sleep(0)
            if len(told) == 4:
                return Step(done=True, reward=index / 10)
            return Step(({"role": "user", "content": f"calc {index}{len(told)}="},))

        return Opened([{"role": "user", "content": f"calc {seed}{index}="}], step)


@dataclass
class Opened:
    messages: Any
    step: Callable[[Any], Any]
    tools: Sequence[Any] = ()


def test_what_is_written_is_trained_and_has_the_log_probability_of_a_plain_forward(
    path: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = made_task(Echo(), tokenizer)
    asked = prompts(task, tokenizer, 3)
    rollouts = one_list(student(path, task, tokenizer), asked)
    assert [(r.group, r.index) for r in rollouts] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    model = load_model(path, device="cpu", dtype="float32")
    for rollout in rollouts:
        assert_recorded_as_a_plain_forward_has_it(model, rollout)
        assert (rollout.sampler_logprobs[~rollout.loss_mask] == 0).all()
        record = rollout.episode
        assert record is not None
        assert record.ended in ("done", "tokens")
        if record.ended == "done":
            assert record.turns == 4
            assert record.reward == rollout.group / 10
    # Two samples of one prompt differ, and so do the turns of one episode: each has randomness of its own.
    assert len({rollout.token_ids.tobytes() for rollout in rollouts}) == 6


def test_the_same_is_written_again_and_beside_others(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task = made_task(Echo(), tokenizer)
    asked = prompts(task, tokenizer, 3)
    first, again = (one_list(student(path, task, tokenizer), asked) for _ in range(2))
    fewer = one_list(student(path, task, tokenizer, batch_size=1), asked[:1])
    for one, other in [*zip(first, again, strict=True), *zip(first[:2], fewer, strict=True)]:  # not per token
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.sampler_logprobs, other.sampler_logprobs, atol=1e-5)
    greedy = one_list(student(path, task, tokenizer), asked, greedy=True)
    assert [rollout.prompt.id for rollout in greedy] == [prompt.id for prompt in asked]


def test_limits_of_turns_and_tokens_end_an_episode(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for limits, ended in (({"turns": 2}, "turns"), ({"tokens": 14}, "tokens")):
        task = made_task(Echo(), tokenizer, **limits)
        for rollout in one_list(student(path, task, tokenizer), prompts(task, tokenizer, 2)):
            record = rollout.episode
            assert record is not None
            assert (record.ended, record.reward) == (ended, 0.0)
            assert len(rollout.token_ids) <= len(rollout.prompt.token_ids) + (14 if ended == "tokens" else 90)


def test_an_engine_that_cannot_write_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    class Other:
        pass

    task = made_task(Echo(), tokenizer)
    settings: Any = None
    with pytest.raises(UserError, match="cannot write turns"):
        with_episodes(Other(), settings, tasks={"calc": task}, tokenizer=tokenizer)  # type: ignore[arg-type]
    other: Any = Other()
    assert with_episodes(other, settings, tasks={}, tokenizer=tokenizer) is other


# ---- environments that break


def raising(message: Any) -> Any:
    raise ValueError("broken")


def exiting(message: Any) -> Any:
    raise SystemExit(3)


async def hanging(message: Any) -> Any:
    await asyncio.sleep(1000)


async def holding(message: Any) -> Any:
    end = time.monotonic() + 1000
    while time.monotonic() < end:
        pass


def answers(value: Any) -> Callable[[Any], Any]:
    async def step(message: Any) -> Any:
        return value

    return step


def user(content: Any) -> Step:
    return Step(({"role": "user", "content": content},))


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (raising, "raised"),
    "exits": (exiting, "raised"),
    "never answers": (hanging, "timeout"),
    "answers None": (answers(None), "answer"),
    "answers a text": (answers("go on"), "answer"),
    "answers a dict": (answers({"messages": []}), "answer"),
    "is no coroutine": (lambda message: 5, "answer"),
    "answers nothing": (answers(Step()), "answer"),
    "reward is NaN": (answers(Step(done=True, reward=NAN)), "answer"),
    "reward is infinite": (answers(Step(done=True, reward=INF)), "answer"),
    "reward is above 1": (answers(Step(done=True, reward=1.5)), "answer"),
    "reward is negative": (answers(Step(done=True, reward=-0.1)), "answer"),
    "reward is missing": (answers(Step(done=True)), "answer"),
    "reward is text": (answers(Step(done=True, reward="1")), "answer"),  # type: ignore[arg-type]
    "reward is true": (answers(Step(done=True, reward=True)), "answer"),
    "content is None": (answers(user(None)), "answer"),
    "content is a number": (answers(user(5)), "answer"),
    "content is a list": (answers(user(["a"])), "answer"),
    "content is bytes": (answers(user(b"a")), "answer"),
    "role is unknown": (answers(Step(({"role": "critic", "content": "a"},))), "answer"),
    "role is the assistant": (answers(Step(({"role": "assistant", "content": "a"},))), "answer"),
    "role is missing": (answers(Step(({"content": "a"},))), "answer"),
    "message is text": (answers(Step(("a",))), "answer"),  # type: ignore[arg-type]
    "messages are text": (answers(Step("a")), "answer"),  # type: ignore[arg-type]
    "messages are a dict": (answers(Step({"role": "user"})), "answer"),  # type: ignore[arg-type]
    "message is None": (answers(Step((None,))), "answer"),  # type: ignore[arg-type]
}
ENDLESS: dict[str, Callable[[Any], Any]] = {
    "10 MB": answers(user("calc " * 2_000_000)),
    "endless turns": answers(user("calc 1=")),
    "control tokens": answers(user("<eos><pad>")),
    "letters that nobody knows": answers(user("\x00漢" * 50)),
    "empty content": answers(user("")),
}
"""What breaks nothing: an episode goes on to its limit."""


class Mixed:
    """Episodes of even indices are an echo's; the others, and whatever takes their place, are broken."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self.step, self.opened = step, 0

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
        if index % 2 == 0 and index < 100:
            return Echo().reset(seed=seed, split=split, index=index)
        self.opened += 1
        return Opened([{"role": "user", "content": f"calc {seed}{index}="}], self.step)


def played(path: str, tokenizer: PreTrainedTokenizerBase, step: Any, **limits: Any) -> tuple[list[Rollout], Mixed]:
    mixed = Mixed(step)
    task = made_task(mixed, tokenizer, **limits)
    asked = prompts(task, tokenizer, 2)
    mixed.opened = 0
    return one_list(student(path, task, tokenizer), asked, greedy=True), mixed


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_environment_fails_its_episode_and_no_other(
    path: str, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    step, reason = BROKEN[name]
    (sound, broken), mixed = played(path, tokenizer, step, seconds=0.2 if reason == "timeout" else 5.0)
    (alone, _), _ = played(path, tokenizer, answers(user("calc 1=")))
    assert sound.token_ids.tolist() == alone.token_ids.tolist()
    assert sound.episode == alone.episode
    record = broken.episode
    assert record is not None
    assert (record.ended, record.reward) == ("failed", 0.0)
    assert record.failures == (reason,) * ATTEMPTS
    assert mixed.opened == ATTEMPTS


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_ended_by_a_limit(path: str, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    (_, endless), _ = played(path, tokenizer, ENDLESS[name])
    record = endless.episode
    assert record is not None
    assert record.ended in ("turns", "tokens")
    assert record.failures == ()
    assert len(endless.token_ids) <= len(endless.prompt.token_ids) + 90


def test_one_that_holds_the_loop_is_left_and_its_neighbours_are_asked_again(
    path: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    (sound, broken), _ = played(path, tokenizer, holding, seconds=0.2)
    (alone, _), _ = played(path, tokenizer, answers(user("calc 1=")))
    assert sound.token_ids.tolist() == alone.token_ids.tolist()
    assert broken.episode is not None
    assert broken.episode.ended == "failed"
    assert broken.episode.failures == ("interrupted",) * ATTEMPTS
    assert sound.episode is not None
    assert alone.episode is not None
    assert sound.episode.reward == alone.episode.reward
    assert set(sound.episode.failures) <= {"interrupted"}


def test_in_training_another_takes_its_place_and_where_none_works_the_run_ends(
    path: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    class Once(Mixed):
        def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
            return super().reset(seed=seed, split=split, index=index if index < 100 else 0)

    task = made_task(Once(raising), tokenizer)
    rollouts = one_list(student(path, task, tokenizer), prompts(task, tokenizer, 2))
    replaced = [rollout for rollout in rollouts if rollout.group == 1]
    for rollout in replaced:
        assert rollout.episode is not None
        assert rollout.episode.failures == ("raised",) * ATTEMPTS
        assert rollout.episode.ended != "failed"
    task = made_task(Mixed(raising), tokenizer)
    (_, broken) = prompts(task, tokenizer, 2)
    with pytest.raises(RunError, match="failed in all of 2 episodes"):
        one_list(student(path, task, tokenizer), [broken])


def test_an_episode_that_recovers_goes_on_where_it_was(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    class Flaky(Echo):
        def __init__(self) -> None:
            self.opened = 0

        def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
            episode, self.opened = super().reset(seed=seed, split=split, index=index), self.opened + 1
            inner, breaks, seen = episode.step, self.opened == 2, 0  # the first draws the prompt

            async def step(message: Any) -> Step:
                nonlocal seen
                seen += 1
                if breaks and seen == 2:
                    raise OSError("lost")
                return await inner(message)

            return Opened(episode.messages, step)

    sound = made_task(Echo(), tokenizer)
    (prompt,) = prompts(sound, tokenizer, 1)
    flaky = made_task(Flaky(), tokenizer)
    flaky.example(seed=0, split="train", index=0)
    (expected,) = one_list(student(path, sound, tokenizer), [prompt], greedy=True)
    (got,) = one_list(student(path, flaky, tokenizer), [prompt], greedy=True)
    assert got.token_ids.tolist() == expected.token_ids.tolist()
    assert got.episode is not None
    assert expected.episode is not None
    assert got.episode.failures == ("raised",)
    assert got.episode.reward == expected.episode.reward


def test_tool_episodes_judge_the_first_message_without_a_call() -> None:
    episode = ToolEpisode([{"role": "user", "content": "?"}], [], lambda text: float(text == "!"))
    step = asyncio.run(episode.step({"role": "assistant", "content": "!"}))
    assert (step.done, step.reward) == (True, 1.0)


def test_evaluations_sample_episodes_as_they_say(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task = made_task(ENVIRONMENTS["calculator"], tokenizer)
    asked = prompts(task, tokenizer, 6)
    decoding = Decoding(16, 1.0, False, 7, 0, (EOS,), 0)

    def examined(sample: int | None, **exam: Any) -> list[list[int]]:
        how = ExamDecoding(**{"temperature": 1.0, "top_p": None, "top_k": None, "stops": None, **exam})
        writer = StudentSampler(decoding, samples_per_prompt=3, batch_size=4, exam=how)
        writer.load_weights(InProcess(load_model(path, device="cpu", dtype="float32")), version=0)
        sampler = EpisodeSampler(
            writer, {"calc": task}, tokenizer, samples_per_prompt=3, max_new_tokens=16, end_token_ids=(EOS,)
        )
        (rollouts,) = sampler.examine(asked, step=2, sample=sample)
        assert [rollout.prompt.id for rollout in rollouts] == [prompt.id for prompt in asked]
        assert all(rollout.episode is not None for rollout in rollouts)
        return [rollout.token_ids.tolist() for rollout in rollouts]

    greedy, first = examined(None), examined(0)
    assert examined(0) == first
    assert first not in (greedy, examined(1))
    assert examined(1, top_k=1) == greedy
    assert examined(0, temperature=3.0) != first

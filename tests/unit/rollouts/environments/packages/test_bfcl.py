"""Cases of bfcl-eval, played with the package's own simulators and judged by its own checker."""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dialogue_kit import CLOSING, TOKENIZER, played, prompts_of, task_of
from templates_kit import tokenizer_of

from mopd.distill.types import EpisodeRecord, Prompt, Rollout, RunError, UserError
from mopd.rollouts.environments.base import Step, Turn
from mopd.rollouts.environments.episodes import EpisodeSampler, GoldWriter, gold_episodes
from mopd.rollouts.environments.packages.bfcl import (
    CATEGORIES,
    BfclEnvironment,
    BfclEpisode,
    Case,
    read_cases,
    simulators,
    written_call,
)
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.turns import ChatTurns
from mopd.rollouts.tokenizer import closing_id, to_prompt

here = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None,
    reason="the package bfcl-eval is not installed: pip install --no-deps bfcl-eval",
)
pytestmark = pytest.mark.timeout(600)
BASE = CATEGORIES[0]
LONG = {"turns": 64, "max_tokens_turn": 800, "max_tokens": 400_000}


def records(rollouts: Sequence[Rollout]) -> list[EpisodeRecord]:
    return [rollout.episode for rollout in rollouts if rollout.episode is not None]


def scripted(task: EnvironmentTask, prompts: Sequence[Prompt]) -> list[EpisodeRecord]:
    """What became of episodes whose turns are the package's own calls."""
    sampler = gold_episodes({"played": task}, TOKENIZER, CLOSING)
    return records([rollout for batch in sampler.sample(prompts, step=0, greedy=True) for rollout in batch])


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calling(*calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def steps(episode: BfclEpisode, *messages: dict[str, Any]) -> list[Step]:
    async def all_of_them() -> list[Step]:
        return [await episode.step(message) for message in messages]

    return asyncio.run(all_of_them())


def case_of(name: str) -> Case:
    return next(case for case in read_cases(name.rsplit("_", 1)[0]) if case.name == name)


def opened(name: str, *, calls: int = 20, seconds: float = 20.0, **changes: Any) -> BfclEpisode:
    return BfclEpisode(replace(case_of(name), **changes), simulators(), calls=calls, seconds=seconds)


def contents(step: Step) -> list[str]:
    return [message["content"] for message in step.messages]


@here
def test_the_packages_own_calls_get_50_of_50() -> None:
    task = task_of({"bfcl": BASE}, **LONG)
    prompts = prompts_of(task, 50)
    assert len({prompt.text for prompt in prompts}) == 50
    played_so = scripted(task, prompts)
    assert [(record.reward, record.ended, record.failures) for record in played_so] == [(1.0, "done", ())] * 50
    assert sum(record.tool_calls for record in played_so) > 100


@here
@pytest.mark.parametrize("category", CATEGORIES[1:])
def test_so_they_do_in_the_other_categories(category: str) -> None:
    task = task_of({"bfcl": category, "args": {"calls": 64}}, **LONG)
    assert [record.reward for record in scripted(task, prompts_of(task, 4, "validation"))] == [1.0] * 4


class AllButTheLast(GoldWriter):
    """Leaves the last call of a script out."""

    def write(self, prompts: Sequence[Prompt], numbers: Sequence[int], **how: Any) -> list[Rollout]:
        rollouts = super().write(prompts, numbers, **how)
        skipped = []
        for prompt, number in zip(prompts, numbers, strict=True):
            script = self._tasks["played"].script(prompt)
            last = max(place for place, text in enumerate(script) if text.endswith(")"))
            skipped.append(number + (1 << 24) * (number // (1 << 24) >= last))
        return [
            replace(after, index=rollout.index)
            for after, rollout in zip(super().write(prompts, skipped, **how), rollouts, strict=True)
        ]


@here
def test_a_call_too_few_or_a_wrong_one_is_failed() -> None:
    task = task_of({"bfcl": BASE}, **LONG)
    prompts = prompts_of(task, 4, "validation")
    sampler = EpisodeSampler(
        AllButTheLast(TOKENIZER, {"played": task}, CLOSING), {"played": task}, TOKENIZER, samples_per_prompt=1,
        max_new_tokens=0, end_token_ids=(CLOSING,),
    )  # fmt: skip
    (short,) = sampler.sample(prompts, step=0, greedy=True)
    assert [(record.reward, record.ended) for record in records(short)] == [(0.0, "done")] * 4
    silent = records(played(task, lambda text: "I would rather not.", prompts))
    assert [(record.reward, record.ended, record.tool_calls) for record in silent] == [(0.0, "done", 0)] * 4
    right = [
        ("ls", {"a": True}),
        ("cd", {"folder": "workspace"}),
        ("mv", {"source": "log.txt", "destination": "archive"}),
    ]
    rest = [
        said("Done."), calling(("cd", {"folder": "archive"}), ("grep", {"file_name": "log.txt", "pattern": "Error"})),
        said("Done."), calling(("tail", {"file_name": "log.txt", "lines": 20})), said("Done."),
    ]  # fmt: skip
    begun = [calling(right[0]), said("Done."), calling(*right[1:])]
    assert steps(opened("multi_turn_base_1"), *begun, *rest)[-1] == Step(done=True, reward=1.0)
    other = [
        calling(right[0]),
        said("Done."),
        calling(right[1], ("mv", {"source": "log.txt", "destination": "log2.txt"})),
    ]
    assert steps(opened("multi_turn_base_1"), *other, *rest)[-1] == Step(done=True, reward=0.0)


@here
def test_what_the_user_asks_next_comes_once_the_calls_of_a_turn_have_ended() -> None:
    episode = opened("multi_turn_base_0")
    asked = [turn[0]["content"] for turn in case_of("multi_turn_base_0").asked]
    assert contents(Step(tuple(episode.messages))) == asked[:1]
    called, ended = steps(episode, calling(("cd", {"folder": "document"}), ("ls", {})), said("Done."))
    assert [message["role"] for message in called.messages] == ["tool", "tool"]
    assert '"current_working_directory": "document"' in contents(called)[0]
    assert "final_report.pdf" in contents(called)[1]
    assert ended.messages == ({"role": "user", "content": asked[1]},)


@here
def test_functions_that_are_held_back_are_offered_when_the_case_says() -> None:
    case = case_of("multi_turn_miss_func_0")
    episode = opened("multi_turn_miss_func_0")
    (refused, *_, later) = steps(episode, calling(("sort", {"file_name": "a"})), said("1"), said("2"), said("3"))
    assert contents(refused)[0].startswith("error: there is no tool 'sort'; there are ")
    assert later.restart
    assert [tool.name for tool in later.tools if tool.name == "sort"] == ["sort"]
    assert len(later.tools) == len(case.offered[0]) + 1
    assert [message["role"] for message in later.messages[:3]] == ["user", "assistant", "tool"]
    assert later.messages[-1]["content"].startswith("I have updated some more functions")


@here
def test_a_case_is_in_one_split_in_every_category_and_is_asked_once() -> None:
    splits = {case.name.rsplit("_", 1)[1]: case.split for case in read_cases(BASE)}
    for category in CATEGORIES[1:]:
        assert {case.name.rsplit("_", 1)[1]: case.split for case in read_cases(category)} == splits
    count = Counter(splits.values())
    environment = BfclEnvironment(BASE, {}, seconds=20.0)
    for split in ("train", "validation", "test"):
        names = [environment.reset(seed=3, split=split, index=index).name for index in range(count[split])]
        assert len(set(names)) == count[split]
        assert {splits[name.rsplit("_", 1)[1]] for name in names} == {split}
    again = BfclEnvironment(BASE, {}, seconds=20.0)
    assert again.reset(seed=3, split="test", index=0).name == names[0]
    with pytest.raises(UserError, match=rf"has {count['test']} cases for test.*evaluate.test_prompts"):
        environment.reset(seed=3, split="test", index=count["test"])


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong argument name": (calling(("cd", {"directory": "document"})), "unexpected keyword argument 'directory'"),
    "an argument too few": (calling(("mv", {"source": "final_report.pdf"})), "missing 1 required"),
    "an argument of another type": (calling(("cd", {"folder": {"a": [1]}})), "error"),
    "no such tool": (calling(("rm_rf", {"path": "/"})), "there is no tool 'rm_rf'"),
    "arguments that are no object": (calling(("cd", [1])), "must be an object"),  # type: ignore[list-item]
    "arguments that are no JSON": (calling(("cd", "{folder")), "no JSON object"),  # type: ignore[list-item]
    "a name that is code": (calling(("cd", {"folder=print(1)) or cd(folder": "a"})), "no parameter is called"),
    "a keyword as a name": (calling(("cd", {"class": "a"})), "no parameter is called 'class'"),
    "a number that is none": (calling(("tail", {"file_name": "a", "lines": float("nan")})), "'nan' is not defined"),
    "what the simulator refuses": (calling(("cd", {"folder": "nowhere"})), "No such file or directory"),
}


@here
@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_that_cannot_be_made_is_answered_and_the_case_goes_on(name: str) -> None:
    message, why = HOSTILE[name]
    answered, after = steps(opened("multi_turn_base_0"), message, calling(("pwd", {})))
    assert why in contents(answered)[0]
    assert answered.failed
    assert not answered.done
    assert contents(after) == ['{"current_working_directory": "/workspace"}']


@here
def test_a_value_that_looks_like_code_stays_a_value(tmp_path: Path) -> None:
    text = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    steps(opened("multi_turn_base_0"), calling(("cd", {"folder": text}), ("echo", {"content": f"') or {text} or ('"})))
    assert not (tmp_path / "made").exists()
    tools = case_of("multi_turn_base_0").offered[0]
    assert written_call(calling(("cd", {"folder": "a'b"}))["tool_calls"][0], tools).text == 'cd(folder="a\'b")'


@here
def test_calls_without_end_fail_the_case() -> None:
    endless = [calling(("ls", {}))] * 4
    assert [step.done for step in steps(opened("multi_turn_base_0", calls=3), *endless)] == [False] * 3 + [True]
    per_turn = [*endless[:3], said("Done."), *endless]
    last = steps(opened("multi_turn_base_0", calls=3), *per_turn)
    assert [step.done for step in last] == [False] * 7 + [True]
    assert last[-1].reward == 0.0
    task = task_of({"bfcl": BASE, "args": {"calls": 3}}, **{**LONG, "turns": 12})
    name = task.open(seed=0, split="train", index=0, easy=False).tools[0].name
    (record,) = records(played(task, lambda text: f"{name}()", prompts_of(task, 1)))
    assert (record.reward, record.ended, record.turns, record.tool_calls) == (0.0, "done", 4, 4)


@here
def test_malformed_calls_are_told_and_end_by_the_limit_of_turns() -> None:
    task = task_of({"bfcl": BASE}, **{**LONG, "turns": 5})
    name = task.open(seed=0, split="train", index=0, easy=False).tools[0].name
    (record,) = records(played(task, lambda text: f"{name}(", prompts_of(task, 1)))
    assert (record.reward, record.ended, record.turns, record.tool_errors) == (0.0, "turns", 5, 5)


@here
def test_a_call_that_hangs_fails_its_case_and_its_neighbours_answer() -> None:
    entry = {**case_of("multi_turn_base_0").entry, "involved_classes": ["MathAPI", "GorillaFileSystem"]}
    math = next(case for case in read_cases(BASE) if any(tool.name == "power" for tool in case.offered[0]))
    hanging = opened("multi_turn_base_0", seconds=1.0, entry=entry, offered=math.offered)
    sound = opened("multi_turn_base_0")

    async def both() -> list[Any]:
        power = calling(("power", {"base": 7, "exponent": 10**9}))
        return await asyncio.gather(hanging.step(power), sound.step(calling(("pwd", {}))), return_exceptions=True)

    broken, answered = asyncio.run(both())
    assert isinstance(broken, RunError)
    assert "more than 1 s" in str(broken)
    assert contents(answered) == ['{"current_working_directory": "/workspace"}']


@here
def test_a_simulator_that_raises_fails_its_case_alone() -> None:
    entry = {**case_of("multi_turn_base_0").entry, "initial_config": {"GorillaFileSystem": {"root": 5}}}
    with pytest.raises(RunError, match="broke: "):
        steps(opened("multi_turn_base_0", entry=entry), calling(("pwd", {})))
    assert contents(steps(opened("multi_turn_base_0"), calling(("pwd", {})))[0])[0].startswith('{"current')


@here
def test_simulators_that_have_ended_begin_again() -> None:
    process = simulators()._process
    if process is not None:
        process.kill()
        process.wait()
    assert contents(steps(opened("multi_turn_base_0"), calling(("pwd", {})))[0])[0].startswith('{"current')


@here
def test_cases_beyond_the_context_are_left_out_by_name() -> None:
    environment = BfclEnvironment(BASE, {}, seconds=20.0)
    assert environment.left_out == []

    def tokens(messages: Sequence[Turn], tools: Sequence[Any]) -> int:
        return len(tools)

    sizes = sorted(len(case.offered[0]) for case in read_cases(BASE))
    room = sizes[150]
    environment.fit(tokens, room)
    unfit = [case.name for case in read_cases(BASE) if len(case.offered[0]) > room]
    (sentence,) = environment.left_out
    assert f"{len(unfit)} of 200 cases" in sentence
    assert unfit[0] in sentence
    kept = [case for case in read_cases(BASE) if case.split == "test" and case.name not in unfit]
    names = {environment.reset(seed=0, split="test", index=index).name for index in range(len(kept))}
    assert names == {case.name for case in kept}
    with pytest.raises(UserError, match="longer than the context"):
        environment.reset(seed=0, split="test", index=len(kept))
    environment.fit(tokens, 0)
    with pytest.raises(UserError, match="has 0 cases for train"):
        environment.reset(seed=0, split="train", index=0)


@here
@pytest.mark.parametrize(
    ("family", "category"), [("qwen3", BASE), ("llama3_1", BASE), ("gemma3", BASE), ("qwen3", CATEGORIES[1])]
)
def test_in_a_chat_template_the_packages_own_calls_are_right_and_tools_are_shown(family: str, category: str) -> None:
    tokenizer = tokenizer_of(family)
    turns = ChatTurns(tokenizer)
    task = EnvironmentTask(
        BfclEnvironment(category, {}, seconds=20.0), domain="played", turns=turns,
        limits=EpisodeLimits(64, 400, 100_000, 20.0),
    )  # fmt: skip
    example = task.example(seed=0, split="validation", index=0)
    assert all(tool.name in example.text for tool in task.open(seed=0, split="validation", index=0, easy=False).tools)
    prompt = to_prompt(tokenizer, domain="played", example=example)
    closing = closing_id(tokenizer)
    (rollouts,) = gold_episodes({"played": task}, tokenizer, closing).sample([prompt], step=0, greedy=True)
    (record,) = records(rollouts)
    assert (record.reward, record.ended, record.tool_errors) == (1.0, "done", 0)
    assert record.tool_calls > 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such category": ({"bfcl": "multi_turn_bass"}, "there are multi_turn_base"),
    "no such setting": ({"bfcl": BASE, "args": {"steps": 3}}, "there is `calls`"),
    "a setting out of bounds": ({"bfcl": BASE, "args": {"calls": 0}}, "calls"),
}


@here
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_played_is_refused(name: str) -> None:
    environment, why = REFUSED[name]
    with pytest.raises(UserError, match=why):
        task_of(environment)


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bfcl_eval" else found(name, *a))
    read_cases.cache_clear()  # of a process that has read them
    with pytest.raises(UserError, match=r"pip install --no-deps bfcl-eval"):
        task_of(f"bfcl:{BASE}")

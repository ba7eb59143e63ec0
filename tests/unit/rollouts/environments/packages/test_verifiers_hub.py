"""Environments of the package verifiers, played by the package itself: its rollouts, tools and rewards."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dialogue_kit import ids_of, played, prompts_of, task_of

from mopd.distill.types import EpisodeRecord, Rollout, UserError

here = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None,
    reason="the package verifiers is not installed: pip install 'mopd[envs]'",
)
pytestmark = pytest.mark.timeout(600)

TASKSET = """
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: str

class SumTask(vf.Task[SumData]):
    @vf.reward
    async def right(self, trace) -> float:
        {reward}

class Sums(vf.Taskset[SumTask, {config}]):
    def load(self):
        for a in range(12, 32):
            for b in range(12, 32):
                yield SumTask(SumData(prompt=f"sum {{a}}+{{b}}=", answer=str(a + b)), self.config.task)
    {more}
"""
RIGHT = "return float(trace.last_reply.strip() == self.data.answer)"
USED = 'used = any(message.role == "tool" for branch in trace.branches for message in branch.messages); '
SINGLE = TASKSET.format(reward=RIGHT, config="vf.TasksetConfig", more="") + '__all__ = ["Sums"]\n'
TOOLS = (
    TASKSET.format(
        reward=f"{USED}return float(used and trace.last_reply.strip() == self.data.answer)",
        config="Config",
        more="@classmethod\n    def toolsets(cls, config):\n        return [Adder(config.tools)]",
    ).replace(
        "class Sums",
        '''class Adder(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = "adder"

    @vf.tool
    def add(self, a: int, b: int) -> str:
        """The sum of two numbers."""
        return f"{a + b};"

class Config(vf.TasksetConfig):
    tools: vf.SharedToolsetConfig = vf.SharedToolsetConfig()

class Sums''',
    )
    + '__all__ = ["Sums"]\nif __name__ == "__main__":\n    Adder.run()\n'
)
TALKS = (
    SINGLE.replace('__all__ = ["Sums"]', "")
    + """
class Config(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig()

class Talk(vf.Env[Config]):
    async def run(self, task, agents):
        async with agents.agent.interaction(task) as talk:
            said = await talk.turn()
            while not said.terminated and said.last_reply != task.data.answer:
                high = int(said.last_reply) > int(task.data.answer)
                said = await talk.turn("too high;" if high else "too low;")

__all__ = ["Sums", "Talk"]
"""
)
TWO_SEATS = TALKS.replace(
    "    agent: vf.AgentConfig = vf.AgentConfig()\n",
    "    agent: vf.AgentConfig = vf.AgentConfig()\n    user: vf.AgentConfig = vf.AgentConfig()\n",
)
MODULES = {
    "mopd_test_single": SINGLE,
    "mopd_test_tools": TOOLS,
    "mopd_test_talks": TALKS,
    "mopd_test_two_seats": TWO_SEATS,
    "mopd_test_raises": SINGLE.replace(RIGHT, 'raise ValueError("broken")'),
    "mopd_test_doubles": SINGLE.replace(RIGHT, "return 2.0"),
    "mopd_test_four": SINGLE.replace("range(12, 32)", "range(12, 14)"),
    "mopd_test_two": SINGLE.replace("range(12, 32)", "range(12, 14)", 1).replace("range(12, 32)", "(12,)"),
    "mopd_test_none": SINGLE.replace("range(12, 32)", "()"),
}


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tasksets")
    for name, code in MODULES.items():
        (folder / f"{name}.py").write_text(code)
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])  # of tool servers
    yield folder
    sys.path.remove(str(folder))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def records(rollouts: list[Rollout]) -> list[EpisodeRecord]:
    return [rollout.episode for rollout in rollouts if rollout.episode is not None]


def total(text: str) -> int:
    first, second = re.findall(r"sum (\d+)\+(\d+)=", text)[-1]
    return int(first) + int(second)


def calling(text: str) -> str:
    """Calls the tool and says what it gave."""
    first, second = re.findall(r"sum (\d+)\+(\d+)=", text)[-1]
    return text.rpartition("<eos>")[2].removesuffix(";") if "<eos>" in text else f"adder_add({first}, {second})"


@here
def test_one_turn_is_judged_by_the_packages_reward() -> None:
    task = task_of({"verifiers": "mopd_test_single"})
    prompts = prompts_of(task, 8)
    right = played(task, lambda text: str(total(text)), prompts)
    assert [(r.reward, r.ended, r.turns, r.failures) for r in records(right)] == [(1.0, "done", 1, ())] * 8
    wrong = played(task, lambda text: str(total(text) + 1), prompts)
    assert [(r.reward, r.ended, r.turns, r.failures) for r in records(wrong)] == [(0.0, "done", 1, ())] * 8
    assert (
        task.verify_many(prompts, [str(total(prompt.text)) for prompt in prompts[:4]] + ["0"] * 4)
        == [1.0] * 4 + [0.0] * 4
    )


@here
def test_problems_are_keyed_and_splits_are_disjoint() -> None:
    task, again = task_of({"verifiers": "mopd_test_single"}), task_of("verifiers:mopd_test_single")
    drawn = {split: [task.example(seed=0, split=split, index=i) for i in range(40)] for split in ("train", "test")}
    assert drawn["train"] == [again.example(seed=0, split="train", index=i) for i in range(40)]
    texts = {split: {example.text for example in examples} for split, examples in drawn.items()}
    assert len(texts["train"]) > 20
    assert not texts["train"] & texts["test"]


@here
def test_a_small_taskset_has_a_task_in_every_split_and_asks_a_held_out_one_once() -> None:
    task = task_of({"verifiers": "mopd_test_four"})
    counts = {"train": 2, "validation": 1, "test": 1}
    drawn = {split: [task.example(seed=0, split=split, index=i).text for i in range(n)] for split, n in counts.items()}
    every = sorted(text for texts in drawn.values() for text in texts)
    assert every == ["sum 12+12=", "sum 12+13=", "sum 13+12=", "sum 13+13="]
    # Training goes through all of its tasks before any comes again.
    again = [task.example(seed=0, split="train", index=i).text for i in range(2, 8)]
    assert all(set(again[i : i + 2]) == set(drawn["train"]) for i in (0, 2, 4))
    with pytest.raises(
        UserError, match=r"has 1 tasks for test, and task 2 is asked for; lower `evaluate.test_prompts` to 1"
    ):
        task.example(seed=0, split="test", index=1)


@here
def test_tools_are_the_packages_own_and_the_conversation_is_exact() -> None:
    task = task_of({"verifiers": "mopd_test_tools"})
    prompts = prompts_of(task, 4)
    assert task.tool_names(prompts[0]) == ("adder_add",)
    rollouts = played(task, calling, prompts, samples=2)
    assert [(r.reward, r.turns, r.tool_calls, r.tool_errors) for r in records(rollouts)] == [(1.0, 2, 1, 0)] * 8
    for rollout in rollouts:
        question = rollout.prompt.text
        first, second = re.findall(r"\d+", question)
        answer = str(total(question))
        ids, mask = ids_of(
            (question, False), (f"adder_add({first}, {second})", True), (f"{answer};", False), (answer, True)
        )
        assert rollout.token_ids.tolist() == ids
        assert rollout.loss_mask.tolist() == mask
    # Right, but without the tool: this reward asks for its use.
    assert [r.reward for r in records(played(task, lambda text: str(total(text)), prompts))] == [0.0] * 4
    # A call that does not fit is answered by the tool's server, and the episode goes on.
    (wrong, *_) = records(played(task, lambda text: "0" if "<eos>" in text else "adder_add(1)", prompts[:1]))
    assert (wrong.reward, wrong.turns, wrong.ended) == (0.0, 2, "done")


def halving(text: str) -> str:
    """Guesses 7, and then between what was too low and what was too high."""
    low, high = 0, 64
    if "too" not in text:
        return "7"
    for guess, hint in re.findall(r"(\d+)<eos>too (low|high);", text):
        low, high = (int(guess) + 1, high) if hint == "low" else (low, int(guess) - 1)
    return str((low + high) // 2)


@here
def test_a_talk_of_several_turns_goes_on_until_the_package_ends_it() -> None:
    task = task_of({"verifiers": "mopd_test_talks"}, turns=9)
    prompts = prompts_of(task, 4)
    rollouts = played(task, halving, prompts)
    assert [(r.reward, r.ended) for r in records(rollouts)] == [(1.0, "done")] * 4
    assert all(r.turns > 1 for r in records(rollouts))
    assert len(rollouts) == 4  # one sequence each: every request goes on where the last one ended
    never = records(played(task, lambda text: "1", prompts[:2]))
    assert [(r.reward, r.ended, r.turns) for r in never] == [(0.0, "turns", 9)] * 2


@here
@pytest.mark.parametrize(("module", "reason"), [("mopd_test_raises", "raised"), ("mopd_test_doubles", "answer")])
def test_a_reward_that_breaks_fails_its_episode(module: str, reason: str) -> None:
    task = task_of({"verifiers": module})
    (prompt,) = prompts_of(task, 1)
    with pytest.raises(Exception, match=f"failed in all of 1 episodes.*{reason}"):
        played(task, lambda text: "1", [prompt])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such taskset": ({"verifiers": "mopd_test_nowhere"}, "mopd_test_nowhere"),
    "no such setting": ({"verifiers": "mopd_test_single", "args": {"agent": {"turns": 3}}}, "turns"),
    "a shell for the model": (
        {"verifiers": "mopd_test_single", "args": {"agent": {"harness": {"id": "bash"}}}},
        "would run what a model writes on this machine",
    ),
    "two seats": ({"verifiers": "mopd_test_two_seats"}, "2 seats that the student would play"),
    "no tasks": ({"verifiers": "mopd_test_none"}, "has no tasks"),
    "two tasks": ({"verifiers": "mopd_test_two"}, "has 2 different tasks, too few"),
}


@here
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_played_is_refused(name: str) -> None:
    environment, told = REFUSED[name]
    with pytest.raises(UserError, match=told):
        task_of(environment)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifiers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(UserError, match=r"pip install 'mopd\[envs\]'"):
        task_of("verifiers:gsm8k")

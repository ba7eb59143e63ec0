"""Programs that are given a base URL and a key are environments: exact ids, side by side, and whatever they do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import save_model
from deadline_kit import Deadline, patience
from dialogue_kit import (
    CLOSING,
    TOKENIZER,
    assert_recorded_as_a_plain_forward_has_it,
    ids_of,
    played,
    prompts_of,
    task_of,
)

from mopd.distill.models.load import load_model
from mopd.distill.types import EpisodeRecord, Prompt, Rollout, RunError, UserError
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.environments.episodes import ATTEMPTS, EpisodeSampler
from mopd.rollouts.environments.kept import KeptEpisodes, keeps_episodes
from mopd.rollouts.environments.task import EnvironmentTask

ASKS = '''
import json, os, sys, time, urllib.error, urllib.request

def ask(messages, **more):
    """The assistant's next message."""
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, **more}).encode(),
        {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]

def user(text):
    return {"role": "user", "content": text}

def note(pid):
    with open(sys.argv[1], "a") as file:
        print(pid, file=file)

index = int(os.environ["MOPD_INDEX"])
'''
ADDS = """
tool = {"type": "function", "function": {"name": "add", "description": "The sum.", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}
messages = [{"role": "system", "content": "sums;"}, user(f"sum {index}+7=")]
while True:
    said = ask(messages, tools=[tool])
    messages.append(said)
    if not said.get("tool_calls"):
        break
    for call in said["tool_calls"]:
        given = json.loads(call["function"]["arguments"])
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"{given['a'] + given['b']};"})
print("thoughts of the program")
print(float(said["content"] == str(index + 7)))
"""
FORGETS = """
first = ask([user(f"ask {index}=")])
second = ask([user(f"sum up {first['content']}=")])
third = ask([user(f"sum up {first['content']}="), second, user("more;")])
print(1.0)
"""


def command(folder: Path, code: str, *arguments: object) -> dict[str, str]:
    """A program as a domain's environment."""
    path = folder / "agent.py"
    path.write_text(ASKS + code)
    return {"program": " ".join([sys.executable, str(path), *map(str, arguments)])}


def records(rollouts: Sequence[Rollout]) -> list[EpisodeRecord]:
    return [rollout.episode for rollout in rollouts if rollout.episode is not None]


def adds(text: str) -> str:
    index = int(text.partition("sum ")[2].partition("+")[0])
    return text.rpartition("<eos>")[2].removesuffix(";") if "<eos>" in text else f"add({index}, 7)"


def test_a_program_is_an_environment_and_its_conversation_is_exact(tmp_path: Path) -> None:
    task = task_of(command(tmp_path, ADDS))
    prompts = prompts_of(task, 3)
    rollouts = played(task, adds, prompts, samples=2)
    assert [(r.reward, r.ended, r.turns, r.tool_calls) for r in records(rollouts)] == [(1.0, "done", 2, 1)] * 6
    for rollout in rollouts:
        index = rollout.group
        ids, mask = ids_of(
            (f"sums;sum {index}+7=", False),
            (f"add({index}, 7)", True),
            (f"{index + 7};", False),
            (str(index + 7), True),
        )
        assert rollout.token_ids.tolist() == ids
        assert rollout.loss_mask.tolist() == mask
    assert [r.reward for r in records(played(task, lambda text: "0", prompts))] == [0.0] * 3


def test_sessions_run_side_by_side(tmp_path: Path) -> None:
    """Each program goes on once all four were answered, which none would be if one waited for another's end."""
    waits = """
here = sys.argv[1]
said = ask([user(f"ask {index}=")])
open(f"{here}/{os.getpid()}", "w").close()
end = time.monotonic() + 600
while len(os.listdir(here)) < 4 and time.monotonic() < end:
    time.sleep(0.01)
print(float(len(os.listdir(here)) == 4))
"""
    (tmp_path / "met").mkdir()
    task = task_of(command(tmp_path, waits, tmp_path / "met"))
    rollouts = played(task, lambda text: "yes", prompts_of(task, 2), samples=2)
    assert [(r.reward, r.failures) for r in records(rollouts)] == [(1.0, ())] * 4


def test_history_that_is_rewritten_begins_another_sequence(tmp_path: Path) -> None:
    task = task_of(command(tmp_path, FORGETS))
    (prompt,) = prompts_of(task, 1)
    first, second = played(task, lambda text: f"n{text.count('<eos>')}", [prompt])
    assert first.token_ids.tolist() == ids_of(("ask 0=", False), ("n0", True))[0]
    ids, mask = ids_of(("sum up n0=", False), ("n0", True), ("more;", False), ("n1", True))
    assert second.token_ids.tolist() == ids
    assert second.loss_mask.tolist() == mask
    assert [(r.reward, r.turns) for r in records([first, second])] == [(1.0, 3)] * 2
    assert [(r.group, r.index) for r in (first, second)] == [(0, 0), (0, 1)]


def model_of(folder: Path) -> str:
    torch.manual_seed(0)
    return save_model(folder / "model", TOKENIZER, initializer_range=0.3)


def student(path: str, task: EnvironmentTask, *, version: int = 3) -> EpisodeSampler:
    decoding = Decoding(16, 1.0, False, 7, 0, (CLOSING,), 0)
    engine = StudentSampler(decoding, samples_per_prompt=1, batch_size=64)
    engine.load_weights(InProcess(load_model(path, device="cpu", dtype="float32")), version=version)
    return EpisodeSampler(
        engine, {"played": task}, TOKENIZER, samples_per_prompt=2, max_new_tokens=16, end_token_ids=(CLOSING,)
    )


def test_the_student_serves_with_keyed_randomness_and_its_own_log_probabilities(tmp_path: Path) -> None:
    path = model_of(tmp_path)
    task = task_of(command(tmp_path, FORGETS), max_tokens_turn=12)
    prompts = prompts_of(task, 2)
    rollouts, again = ([r for batch in student(path, task).sample(prompts, step=3) for r in batch] for _ in range(2))
    assert len(rollouts) == 8  # two programs, each twice, in two sequences
    assert [r.token_ids.tolist() for r in rollouts] == [r.token_ids.tolist() for r in again]
    model = load_model(path, device="cpu", dtype="float32")
    for rollout in rollouts:
        assert rollout.version == (3, 3)
        assert_recorded_as_a_plain_forward_has_it(model, rollout)
    assert len({rollout.token_ids.tobytes() for rollout in rollouts}) == 8


TOSSES = """
import random
said = ask([user(f"ask {index}=")])
note(os.getpid())
said = ask([user(f"ask {index}="), said, user(f"{random.random()};")])
print(random.random())
"""


def test_rollouts_of_programs_are_kept_and_not_drawn_again(tmp_path: Path) -> None:
    """The program answers otherwise each time; a run that does a step again gets what it had, and asks nobody."""
    path = model_of(tmp_path)
    task = task_of(command(tmp_path, TOSSES, tmp_path / "pids"), max_tokens_turn=12)
    prompts = prompts_of(task, 2)

    def kept(version: int, step: int, asked: Sequence[Prompt] = prompts, **how: Any) -> tuple[list[Rollout], int]:
        """The rollouts of a run that begins anew, and how many programs were asked."""
        before = len(pids.read_text().split()) if (pids := tmp_path / "pids").exists() else 0
        inner = student(path, task, version=version)
        sampler = KeptEpisodes(inner, tmp_path / "kept", steps=2)
        sampler.load_weights(InProcess(load_model(path, device="cpu", dtype="float32")), version=version)
        rollouts = [rollout for batch in sampler.sample(asked, step=step, **how) for rollout in batch]
        return rollouts, (len(pids.read_text().split()) if pids.exists() else 0) - before

    assert keeps_episodes({"played": task})
    (first, played_first), (again, played_again) = kept(3, 3), kept(3, 3)
    assert (played_first, played_again) == (4, 0)
    for one, other in zip(first, again, strict=True):
        for name in ("token_ids", "loss_mask", "sampler_logprobs"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
            assert getattr(one, name).dtype == getattr(other, name).dtype
        assert (one.prompt, one.finish, one.version, one.group, one.index, one.episode) == (
            other.prompt, other.finish, other.version, other.group, other.index, other.episode
        )  # fmt: skip
    # Other weights, other prompts and measurements are played.
    assert kept(2, 3)[1] == 4
    assert kept(2, 3, prompts[:1])[1] == 2
    assert kept(2, 3, greedy=True)[1] == 2
    # Those of steps that no resumed run goes back to are removed.
    for step in (4, 5):
        kept(step, step)
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["step-000004.npz", "step-000005.npz"]
    (tmp_path / "kept" / "step-000005.npz").write_bytes(b"half")
    with pytest.raises(RunError, match=r"step-000005\.npz cannot be read"):
        kept(5, 5)


# ---- programs that break

FIRST = 'said = ask([user(f"ask {index}=")])\n'
BROKEN: dict[str, tuple[str, str]] = {
    "raises": ("raise ValueError('broken')", "raised"),
    "ends with a status": ("sys.exit(3)", "raised"),
    "kills itself": ("os.kill(os.getpid(), 9)", "raised"),
    "prints nothing": ("pass", "raised"),
    "prints no number": ("print('very good')", "raised"),
    "prints NaN": ("print('nan')", "answer"),
    "prints too much of a reward": ("print(7.0)", "answer"),
    "floods and gives none": ("print('x' * 10_000_000)", "raised"),
    "complains without end": ("sys.stderr.write('x' * 10_000_000); sys.exit(1)", "raised"),
    "closes what it prints to and waits": ("os.close(1); os.close(2); time.sleep(1000)", "timeout"),
    "waits for ever": ("time.sleep(1000)", "timeout"),
    "hides in a child": (
        "import subprocess; note(subprocess.Popen(['sleep', '1000']).pid); time.sleep(1000)",
        "timeout",
    ),
    "asks what is not served": ("ask([user('a')], n=2)", "raised"),
    "sends a picture": ("ask([{'role': 'user', 'content': [{'type': 'image_url'}]}])", "raised"),
    "sends no messages": ("ask([])", "raised"),
    "sends messages of nobody": ("ask([{'content': 'a'}])", "raised"),
    "has another's key": ("os.environ['OPENAI_API_KEY'] = 'other'; ask([user('a')])", "raised"),
}
"""What a program does after its first answer, and the reason by which the failure is counted."""


def all_end(pids: Path) -> None:
    """Wait until every process that was noted is through."""
    until = Deadline(60.0)
    for pid in pids.read_text().split():
        while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert until.waits(), f"process {pid} goes on"


@pytest.mark.parametrize("name", BROKEN)
def test_a_program_that_breaks_fails_its_episode_alone(tmp_path: Path, name: str) -> None:
    code, reason = BROKEN[name]
    broken = f"{FIRST}if index == 0:\n    print(float(said['content'] == 'right'))\n"
    broken += f"else:\n    note(os.getpid())\n    {code}\n"
    seconds = min(15.0, patience(2.0)) if reason == "timeout" else 120.0
    task = task_of(command(tmp_path, broken, tmp_path / "pids"), seconds=seconds)
    prompts = prompts_of(task, 2)
    good, bad = records(played(task, lambda text: "right", prompts, greedy=True))
    assert (good.reward, good.ended, good.failures) == (1.0, "done", ())
    assert (bad.reward, bad.ended, bad.failures) == (0.0, "failed", (reason,) * ATTEMPTS)
    all_end(tmp_path / "pids")


def test_a_program_that_never_ends_asking_is_ended_by_a_limit_and_killed(tmp_path: Path) -> None:
    endless = """
note(os.getpid())
messages = [user(f"ask {index}=")]
try:
    while True:
        messages += [ask(messages), user("more;")]
except urllib.error.HTTPError:
    time.sleep(1000)
"""
    task = task_of(command(tmp_path, endless, tmp_path / "pids"), turns=3)
    (record,) = records(played(task, lambda text: "go", prompts_of(task, 1)))
    assert (record.reward, record.ended, record.turns) == (0.0, "turns", 3)
    all_end(tmp_path / "pids")


def test_a_program_that_asks_otherwise_than_before_fails(tmp_path: Path) -> None:
    changes = """
import random
said = ask([user(f"ask {random.random()}=")])
print(1.0)
"""
    task = task_of(command(tmp_path, changes))
    with pytest.raises(RunError, match="failed in all of 1 episodes"):
        played(task, lambda text: "go", prompts_of(task, 1))


def test_a_program_that_asks_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended with status 2"):
        task_of(command(tmp_path, "sys.exit(2)"))
    with pytest.raises(UserError, match="asked for nothing in 1 s"):
        task_of(command(tmp_path, "time.sleep(1000)"), seconds=1.0)
    with pytest.raises(UserError, match="there is no program"):
        task_of({"program": "no-such-program --at all"})
    with pytest.raises(UserError, match="cannot be read"):
        task_of({"program": "echo 'a"})

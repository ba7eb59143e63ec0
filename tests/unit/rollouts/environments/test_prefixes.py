"""Episodes that another began: whose history, up to which turn, and what of it the student is graded on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import save_model
from dialogue_kit import CLOSING, TOKENIZER, Policy, assert_recorded_as_a_plain_forward_has_it, prompts_of, task_of

from mopd.distill.models.load import load_model
from mopd.distill.rollout_files import packed, unpacked
from mopd.distill.types import History, Prompt, Rollout, ScoredRollout
from mopd.recipes.evaluation.costs import Costs, cost_of
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.environments.base import Step
from mopd.rollouts.environments.episodes import EpisodeSampler, gold_episodes
from mopd.rollouts.environments.prefixes import PrefixSampler, turn_starts
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.sampler import TeacherSampler, prefix_shares


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("prefixes") / "model", TOKENIZER, initializer_range=0.3)


def student(path: str, task: EnvironmentTask, samples: int = 2) -> EpisodeSampler:
    engine = StudentSampler(Decoding(16, 1.0, False, 7, 0, (CLOSING,), 0), samples_per_prompt=1, batch_size=64)
    engine.load_weights(InProcess(load_model(path, device="cpu", dtype="float32")), version=3)
    return EpisodeSampler(
        engine, {"played": task}, TOKENIZER, samples_per_prompt=samples, max_new_tokens=16, end_token_ids=(CLOSING,)
    )


def teacher(task: EnvironmentTask, says: Any) -> TeacherSampler:
    episodes = EpisodeSampler(
        Policy(says), {"played": task}, TOKENIZER, samples_per_prompt=1, max_new_tokens=16, end_token_ids=(CLOSING,)
    )
    return TeacherSampler({"t": episodes}, routes={"played": {"t": 1.0}})


def written(sampler: Any, prompts: Sequence[Prompt], step: int = 3) -> list[Rollout]:
    return [rollout for microbatch in sampler.sample(prompts, step=step) for rollout in microbatch]


def test_the_student_writes_one_turn_after_a_scripts_and_is_trained_on_that_alone(path: str) -> None:
    task = task_of("calculator", turns=4, max_tokens_turn=12)
    asked = prompts_of(task, 8)
    scripts = gold_episodes({"played": task}, TOKENIZER, CLOSING)
    gold = written(scripts, asked)
    sampler = PrefixSampler(student(path, task), {"dataset": scripts}, parts={"played": {"dataset": 1.0}}, seed=5)
    rollouts = written(sampler, asked)
    assert [(r.group, r.index) for r in rollouts] == [(k // 2, k) for k in range(16)]
    model = load_model(path, device="cpu", dtype="float32")
    for rollout in rollouts:
        played, history = gold[rollout.group], rollout.history
        assert history is not None
        assert (history.writer, history.tokens) == (None, len(played.token_ids))
        start = turn_starts(played)[history.turns]
        assert turn_starts(rollout) == [start]
        assert rollout.token_ids[:start].tolist() == played.token_ids[:start].tolist()
        assert rollout.loss_mask[start:].all()
        assert rollout.trained_tokens <= 12
        assert (
            rollout.prompt == asked[rollout.group]
        )  # so that a teacher with a prompt of its own reads the history too
        assert rollout.episode is None
        assert_recorded_as_a_plain_forward_has_it(model, rollout)
    of_group = [[r for r in rollouts if r.group == group] for group in range(8)]
    assert all(one.history == other.history for one, other in of_group)  # samples of a prompt can be compared
    assert any(one.token_ids.tolist() != other.token_ids.tolist() for one, other in of_group)
    sampler = PrefixSampler(student(path, task), {"dataset": scripts}, parts={"played": {"dataset": 1.0}}, seed=5)
    again = written(sampler, asked)
    assert [r.token_ids.tolist() for r in again] == [r.token_ids.tolist() for r in rollouts]
    assert prefix_shares(rollouts) == {"prefix/played": 1.0}


def test_every_turn_is_drawn_as_often() -> None:
    task = task_of("calculator", turns=4)
    asked = prompts_of(task, 60)
    scripts = gold_episodes({"played": task}, TOKENIZER, CLOSING)
    policy = EpisodeSampler(
        Policy(lambda text: "7"), {"played": task}, TOKENIZER, samples_per_prompt=1, max_new_tokens=16,
        end_token_ids=(CLOSING,),
    )  # fmt: skip
    sampler = PrefixSampler(policy, {"dataset": scripts}, parts={"played": {"dataset": 1.0}}, seed=0)
    turns = Counter[int]()
    for step in range(20):
        rollouts = written(sampler, asked, step)
        turns.update(rollout.history.turns for rollout in rollouts if rollout.history is not None)
        assert all(TOKENIZER.decode(r.token_ids[r.loss_mask][:-1]) == "7" for r in rollouts)  # not per token
    assert set(turns) == {0, 1, 2}
    assert sum(turns.values()) == 1200
    assert all(abs(count - 400) < 4 * np.sqrt(1200 * 2 / 9) for count in turns.values())


def test_prompts_fall_to_each_by_its_part_and_the_others_stay_as_they_were(path: str) -> None:
    task = task_of("calculator", turns=4, max_tokens_turn=12)
    asked = prompts_of(task, 8)
    players = {
        "teacher": teacher(task, lambda text: "calculator(1+1)" if ";" not in text else "2"),
        "dataset": gold_episodes({"played": task}, TOKENIZER, CLOSING),
    }
    parts = {"played": {"teacher": 0.25, "dataset": 0.5}}
    rollouts = written(PrefixSampler(student(path, task, 1), players, parts=parts, seed=5), asked)
    whose = [None if r.history is None else r.history.writer or "script" for r in rollouts]
    assert Counter(whose) == {None: 2, "t": 2, "script": 4}
    alone = {rollout.group: rollout for rollout in written(student(path, task, 1), asked)}
    for rollout in [rollout for rollout in rollouts if rollout.history is None]:
        assert rollout.token_ids.tolist() == alone[rollout.group].token_ids.tolist()
        assert rollout.episode == alone[rollout.group].episode is not None
    for rollout in [rollout for rollout in rollouts if rollout.history is not None]:
        assert rollout.writer is None  # the student wrote all that is learnt from
    shares = prefix_shares(rollouts)["prefix/played"]
    after = sum(r.trained_tokens for r in rollouts if r.history is not None)
    assert shares == pytest.approx(after / sum(r.trained_tokens for r in rollouts))


class Forgetful:
    """Begins the conversation anew with every turn, so that an episode is several sequences."""

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
        return _Forgetful(index)


class _Forgetful:
    def __init__(self, index: int) -> None:
        self.messages, self.tools, self.told = [{"role": "user", "content": f"calc {index}="}], (), 0

    async def step(self, message: Any) -> Step:
        self.told += 1
        if self.told == 3:
            return Step(done=True, reward=1.0)
        return Step(({"role": "user", "content": f"told {self.told}"},), restart=True)


def test_a_history_whose_beginning_was_cut_is_the_prompt() -> None:
    task = task_of("calculator", turns=4)
    task = EnvironmentTask(Forgetful(), domain="played", turns=task.turns, limits=task.limits)
    asked = prompts_of(task, 30)
    policy = EpisodeSampler(
        Policy(lambda text: "7"), {"played": task}, TOKENIZER, samples_per_prompt=1, max_new_tokens=16,
        end_token_ids=(CLOSING,),
    )  # fmt: skip
    sampler = PrefixSampler(policy, {"teacher": teacher(task, lambda text: "5")}, parts={"played": {"teacher": 1.0}},
                            seed=1)  # fmt: skip
    rollouts = written(sampler, asked)
    seen = {rollout.history.turns for rollout in rollouts if rollout.history is not None}
    assert seen == {0, 1, 2}
    for rollout in rollouts:
        assert rollout.history is not None
        before = f"told {rollout.history.turns}" if rollout.history.turns else asked[rollout.group].text
        assert TOKENIZER.decode(rollout.token_ids).startswith(before)  # not per token
        assert len(rollout.prompt.token_ids) == turn_starts(rollout)[0]


def test_a_history_is_kept_with_its_rollout() -> None:
    task = task_of("calculator", turns=4)
    (rollout,) = written(gold_episodes({"played": task}, TOKENIZER, CLOSING), prompts_of(task, 1))
    begun = replace(rollout, history=History("t", 2, 31))
    (microbatch,) = unpacked(packed([[begun]], asked="x"), asked="x") or [[]]
    assert microbatch[0].history == begun.history


def test_what_a_teacher_played_is_paid_for_once_a_prompt(path: str) -> None:
    task = task_of("calculator", turns=4, max_tokens_turn=12)
    asked = prompts_of(task, 4)
    players = {"teacher": teacher(task, lambda text: "calculator(1+1)" if ";" not in text else "2")}
    sampler = PrefixSampler(student(path, task, 2), players, parts={"played": {"teacher": 1.0}}, seed=5)
    rollouts = written(sampler, asked)
    costs = Costs(path, {"t": path}, writes=True)
    spent = costs.of_step([ScoredRollout(rollout) for rollout in rollouts])
    played = [len(rollout.token_ids) for batch in players["teacher"].sample(asked, step=3) for rollout in batch]
    own = [len(rollout.token_ids) for rollout in rollouts]
    assert spent["flops/generation"] == pytest.approx(float(cost_of(path).generate([*own, *played])))
    assert spent["tokens/generation"] == sum(rollout.trained_tokens for rollout in rollouts)

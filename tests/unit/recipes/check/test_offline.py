"""`mopd check --offline`: plans of real models from their configurations, and what they leave open, told."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from check_kit import check, recipe
from typer.testing import CliRunner

from mopd.distill.recipe.files import load_recipe
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED
from mopd.recipes.check.offline import PROMPT_TOKENS, known_config, unchecked
from mopd.recipes.check.plan.processes import GIB
from mopd.recipes.cli import app
from mopd.recipes.resolve.checkpoints import empty_model
from mopd.recipes.resolve.placement import resource_requests
from mopd.recipes.resolve.resolved import resolve

REAL = {"qwen3_1gpu": (2, 32), "qwen3_8gpu": (8, 64), "mimo_cluster": (64 + 8, 256)}
"""Recipe -> its processes, and the prompts of a domain in a step."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("name", "total", "active", "digits"),
    [
        # As their model cards and reports give them: billions, to so many digits after the point.
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.3, 1),
        ("Qwen/Qwen3-32B", 32.8, 32.8, 1),
        ("Qwen/Qwen3-0.6B", 0.6, 0.6, 1),
        ("Qwen/Qwen3-1.7B", 1.7, 1.7, 1),
        ("XiaomiMiMo/MiMo-V2-Flash", 309, 15, 0),
    ],
)
def test_shipped_configurations_have_the_published_parameters(
    name: str, total: float, active: float, digits: int
) -> None:
    cost = empty_model(known_config(name, {}))[1]
    assert cost.total_parameters / 1e9 == pytest.approx(total, rel=0.02, abs=0.05)
    # Published figures are rounded: a whole unit of their last digit is allowed besides.
    assert cost.active_parameters / 1e9 == pytest.approx(active, rel=0.02, abs=0.5 * 10**-digits)


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_of_real_models_is_planned_without_a_network(tmp_path: Path, name: str) -> None:
    made = load_recipe(name, shipped=SHIPPED)
    plan = check(made, tmp_path / "run", offline=True)
    assert not (tmp_path / "run").exists()
    processes, prompts = REAL[name]
    assert sum(process.count for process in plan.processes if process.phase == "run") == processes
    for process in plan.processes:
        if process.phase == "run" and name != "mimo_cluster":  # which the plan shows not to fit
            assert process.card_bytes < 141e9, process  # what the recipe says such a GPU has
    most = PROMPT_TOKENS + made.rollout.max_new_tokens
    assert [step.most_tokens for step in plan.steps] == [prompts * most] * len(plan.steps)


def test_a_teacher_behind_a_server_takes_no_gpu_and_ships_its_support(tmp_path: Path) -> None:
    made = load_recipe("mimo_cluster", shipped=SHIPPED)
    plan = check(made, tmp_path / "run", offline=True)
    asking = [process for process in plan.processes if process.name.startswith("asking")]
    assert [process.count for process in asking] == [4, 4]
    assert all(process.bytes_each < GIB for process in asking)
    living = {claim.who: claim.each for claim in resource_requests(resolve(made.model_copy(update={"device": "cuda"})))}
    assert living["teacher math"] == living["teacher code"] == {}
    k = 64  # the control tokens are not known without a network
    for step in plan.steps:
        trained = step.tokens * 2048 / (PROMPT_TOKENS + 2048)  # answers are counted at the cap; prompts are not shipped
        # Ids and log-probabilities of the support; the rest, the sampled one.
        assert step.payload_bytes / trained == pytest.approx(8 * k + 4 + 4)


def test_what_is_left_open_is_told() -> None:
    lines = unchecked(resolve(load_recipe("qwen3_8gpu", shipped=SHIPPED)))
    assert len(lines) == 3
    assert "Qwen/Qwen3-30B-A3B, Qwen/Qwen3-30B-A3B-Instruct-2507, Qwen/Qwen3-Coder-30B-A3B-Instruct" in lines[0]
    assert "EleutherAI/hendrycks_math, google-research-datasets/mbpp" in lines[1]
    assert unchecked(resolve(recipe())) == []


def test_a_model_that_is_not_shipped_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        check(recipe(student={"model": "Qwen/Qwen3-31B"}), tmp_path, offline=True)
    assert "nothing is known of the Hub model 'Qwen/Qwen3-31B'; did you mean `Qwen/Qwen3-32B`?" in str(told.value)


def test_the_command_prints_the_plan_and_what_is_open(tmp_path: Path) -> None:
    command = ["check", "qwen3_8gpu", "--offline", "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.output
    for told in ("30.5 B", "3.4 B", "left unchecked, without a network:", "qwen3_8gpu: every other check passed"):
        assert told in ended.output, told
    assert " here" not in ended.output.split("left unchecked")[0]  # this machine is not the one that is planned for
    ended = CliRunner().invoke(app, [*command, "--deep"])
    assert ended.exit_code == 2

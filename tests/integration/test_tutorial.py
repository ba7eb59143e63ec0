"""docs/tutorial.md, followed: every command of the page as it stands there, with a tiny chat model, on a CPU.

Only the recipe's numbers are smaller. The Hub that the model is downloaded from is on this machine.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from check_kit import CONFIG
from deadline_kit import patience
from hub_kit import Hub, serving
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.recipe import Recipe
from mopd.rollouts.tokenizer import CHATML, build_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
QUEUES = {"billing": "invoice", "delivery": "parcel", "returns": "refund"}
NO_THOUGHT = "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
"""As the chat template of Qwen3 begins an answer that is to be without a thought."""
SMALL: dict[str, Any] = {
    "student": {"engine": {"microbatch_tokens": 1024}},
    "domains": {"orders": {"prompts": 2}, "tickets": {"prompts": 2}},
    "rollout": {"max_new_tokens": 20},
    "evaluate": {"validation_prompts": 4, "test_prompts": 6, "graded_prompts": 2},
    "run": {"steps": 2, "evaluate_every": 1, "save_every": 1},
    "stages": {name: {"steps": 4, "prompts": 8, "optimizer": {"lr": 0.02}} for name in ("orders", "tickets")},
}


def block(language: str, number: int = 0) -> str:
    """The page's block of a language, counted from 0."""
    return [text for kind, text in BLOCKS if kind == language][number]


def rows(kind: str, count: int) -> Iterator[dict[str, str]]:
    """Rows with the columns of the page's own example."""
    drawn = random.Random(kind)
    for number in range(count):
        if kind == "orders":
            lamps, parcel = drawn.randint(2, 9), drawn.randint(1, 9)
            question = f"{lamps} lamps at 5 each, order {number}, and {parcel} for the parcel. What is to pay?"
            yield {"question": question, "total": f"{5 * lamps + parcel}.00"}
        else:
            queue = drawn.choice(sorted(QUEUES))
            yield {"text": f"Number {number}: the {QUEUES[queue]} is wrong.", "queue": queue}


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: merged(tree[key], changes[key]) if isinstance(changes.get(key), dict) else changes.get(key, tree.get(key))
        for key in {**tree, **changes}
    }


def chat_model(folder: Path) -> dict[str, bytes]:
    """The files of a model with a chat template that writes all that the rows and the recipe hold."""
    texts = [text for kind in ("orders", "tickets") for row in rows(kind, 400) for text in row.values()]
    texts += [block("yaml"), "".join(map(chr, range(32, 127))) * 2]
    tokenizer = build_tokenizer([*texts, NO_THOUGHT], 300, CHATML + NO_THOUGHT)
    torch.manual_seed(0)
    settings = {**CONFIG, "head_dim": 8, "num_hidden_layers": 2, "max_position_embeddings": 512}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model("qwen3", **settings, vocab_size=len(tokenizer), **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of who followed the page, and what each command printed."""
    home = tmp_path_factory.mktemp("tutorial")
    hub = Hub()
    hub.push(chat_model(home / "made"))
    (home / "data").mkdir()
    for kind in ("orders", "tickets"):
        text = "".join(json.dumps(row) + "\n" for row in rows(kind, 120))
        (home / "data" / f"{kind}.jsonl").write_text(text)
    (home / "shop.yaml").write_text(yaml.safe_dump(merged(yaml.safe_load(block("yaml")), SMALL), sort_keys=False))
    printed = {}
    repo = next(word for word in shlex.split(COMMANDS[0]) if "/" in word)
    with serving(hub, "models", repo) as address:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_ENDPOINT": address,
            "HF_HOME": str(home / "cache"),
            "HF_HUB_OFFLINE": "0",
            "WANDB_MODE": "offline",
            "COLUMNS": "200",
        }
        for command in COMMANDS:
            done = subprocess.run(
                shlex.split(command), cwd=home, env=environment, capture_output=True, text=True, timeout=patience(300)
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            printed[command] = done.stdout + done.stderr
    return home, printed


def test_the_rows_that_the_page_shows_are_those_that_its_recipe_reads() -> None:
    recipe = Recipe.model_validate(yaml.safe_load(block("yaml")))
    for number, name in enumerate(("orders", "tickets")):
        row, task = json.loads(block("json", number)), recipe.domains[name].task
        assert not isinstance(task, str)
        assert {task.prompt, task.answer} == set(row)  # type: ignore[union-attr]
        assert set(next(rows(name, 1))) == set(row)


def test_every_command_does_what_the_page_says(followed: tuple[Path, dict[str, str]]) -> None:
    home, printed = followed
    assert (home / "models" / "chat" / "config.json").is_file()
    checked = printed["mopd check ./shop.yaml"]
    assert "<|im_start|>user" in checked
    assert "Answer with the number alone." in checked
    assert "Name the queue of this ticket" in checked
    assert "every check passed" in checked
    out = home / "runs" / "shop"
    assert f"report: {out / 'report.html'}" in printed["mopd run ./shop.yaml --out runs/shop"].replace("\n", "")
    for name in ("orders", "tickets"):
        assert name in (out / "report.html").read_text()
        assert name in json.loads((out / "seesaw.json").read_text())["teachers"]
    assert (home / "runs" / "comparison" / "comparison.html").is_file()
    assert "**orders**: `./models/chat`, with adapter `stage:orders`" in (out / "student" / "README.md").read_text()


def test_scores_before_and_after_are_of_the_same_questions(followed: tuple[Path, dict[str, str]]) -> None:
    home, _ = followed
    base, student = (json.loads((home / f"{name}.json").read_text()) for name in ("base", "student"))
    assert list(base["tasks"]) == list(student["tasks"]) == ["orders", "tickets"]
    assert {task["greedy"]["n"] for each in (base, student) for task in each["tasks"].values()} == {6}
    assert base["tasks"]["orders"]["sampled"] is None
    assert student["tasks"]["orders"]["sampled"] is not None


def test_the_student_loads_as_the_page_loads_it(
    followed: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, _ = followed
    monkeypatch.chdir(home)
    exec(block("python"), {})
    assert "The parcel has not come." in capsys.readouterr().out
    assert (home / "runs" / "shop" / "adapter" / "adapter_config.json").is_file()


def test_the_page_is_short_and_its_commands_are_all_here() -> None:
    assert len(PAGE.splitlines()) <= 150
    assert len(COMMANDS) >= 8
    assert {shlex.split(command)[0] for command in COMMANDS} == {"hf", "mopd"}

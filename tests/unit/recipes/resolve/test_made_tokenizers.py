"""Tokenizers of models made from scratch: with a chat template, trained here or another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_kit import CONFIG, check, problems, recipe, save_model, tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from mopd.distill.recipe import Architecture, DomainRecipe, StageRecipe
from mopd.distill.types import UserError
from mopd.recipes.resolve.initial import make_initial
from mopd.recipes.resolve.stages import run_stages, stage_fingerprint
from mopd.rollouts.tokenizer import CHATML, build_tokenizer, encode, end_token_ids, give_template, turn_end_id

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 1 + 2?"}]
TEXTS = ["what is 0123456789 + - ?", "be brief"] * 3
OTHER: dict[str, Any] = {"architecture": "qwen3", "config": {**CONFIG, "head_dim": 8}, "tokenizer": "stage:base"}


def rows(folder: Path) -> str:
    """A dataset of chats, of which the last turn is the answer."""
    path = folder / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"what is {i} + {i}?"}, {"role": "assistant", "content": str(2 * i)}]
        for i in range(200)
    ]
    path.write_text("".join(json.dumps({"messages": t, "answer": t[1]["content"]}) + "\n" for t in turns))
    return str(path)


def chat_tree(tmp_path: Path, **student: Any) -> dict[str, Any]:
    base = {"from": {"architecture": "llama", "config": CONFIG, "vocabulary": 120, "chat_template": "chatml"}}
    return {
        "domains": {
            "math": {
                "task": {"path": rows(tmp_path), "prompt": "messages", "answer": "answer", "verifier": "number"},
                "teacher": "math",
                "prompts": 4,
            }
        },
        "teachers": {"math": {"model": "stage:base"}},
        "stages": {"base": base, "student": {"from": {**OTHER, **student}}},
        "student": {"model": "stage:student"},
        "evaluate": {"validation_prompts": 8, "test_prompts": 8},
    }


def test_turns_are_single_tokens_and_end_a_completion(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TEXTS, 80, CHATML)
    text = str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.unk_token_id not in ids
    assert turn_end_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = save_model(tmp_path / "model", tokenizer)
    assert end_token_ids(AutoTokenizer.from_pretrained(model), model)[0] == turn_end_id(tokenizer)
    assert build_tokenizer(TEXTS, 80).get_vocab().keys() < {
        *tokenizer.get_vocab(),
        *build_tokenizer(TEXTS, 80).get_vocab(),
    }


def test_models_made_from_scratch_share_a_tokenizer_and_use_chats(tmp_path: Path) -> None:
    plan = check(recipe(**chat_tree(tmp_path)), tmp_path / "run")
    assert [model.name for model in plan.models] == ["stage:base", "stage:student", "teacher math", "student"]


@pytest.mark.parametrize(
    ("student", "culprit"),
    [
        ({"tokenizer": "stage:bass"}, "an undeclared stage"),
        ({"tokenizer": "stage:student"}, "back to itself"),
        ({"tokenizer": "./nowhere"}, "nowhere"),
    ],
)
def test_a_tokenizer_that_is_nowhere_is_refused(tmp_path: Path, student: dict[str, Any], culprit: str) -> None:
    found = problems(tmp_path / "run", **chat_tree(tmp_path, **student))
    assert any(culprit in problem for problem in found), found


def test_a_template_that_the_tokenizer_has_no_tokens_for_is_refused(tmp_path: Path) -> None:
    changes = chat_tree(tmp_path, chat_template="chatml")
    del changes["stages"]["base"]["from"]["chat_template"]
    assert any("<|im_start|>" in problem for problem in problems(tmp_path / "run", **changes))
    with pytest.raises(UserError, match="im_end"):
        give_template(build_tokenizer(TEXTS, 80), CHATML)


def test_a_vocabulary_beside_another_models_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="both `tokenizer` and `vocabulary`"):
        Architecture(architecture="llama", vocabulary=100, tokenizer="./base")
    with pytest.raises(ValueError, match="chatml"):
        Architecture(architecture="llama", chat_template="qwen")


def test_the_initial_checkpoint_has_the_tokenizer_of_another(tmp_path: Path) -> None:
    taken = tokenizer_of("arithmetic")
    source = save_model(tmp_path / "source", taken)
    (tmp_path / "attempt").write_text("now")
    template = tmp_path / "turns.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    make_initial(
        Architecture(architecture="qwen3", config=OTHER["config"], tokenizer=source, chat_template=str(template)),
        tmp_path / "initial",
        domains={"math": DomainRecipe(task="arithmetic")},
        seed=0,
        run_dir=tmp_path,
        attempt="now",
        tokenizer_of=source,
    )
    made = AutoTokenizer.from_pretrained(tmp_path / "initial")
    assert made.get_vocab() == taken.get_vocab()
    assert made.chat_template == template.read_text()
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "initial").config
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (len(taken), taken.eos_token_id, None)


def test_a_stage_waits_for_the_one_whose_tokenizer_it_takes(tmp_path: Path) -> None:
    made = recipe(**chat_tree(tmp_path))
    order: list[str] = []
    run_stages(dict(reversed(made.stages.items())), order.append, parallel=2, stop=lambda: None)
    assert order == ["base", "student"]
    other = chat_tree(tmp_path)
    other["stages"]["base"]["steps"] = 7
    assert stage_fingerprint(recipe(**other), "student") != stage_fingerprint(made, "student")
    assert StageRecipe.model_validate({"from": OTHER}).from_ == made.stages["student"].from_

"""Tasks and tokenizer: splits that never meet, verifiers that tell right from wrong, tokens that are reproducible."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from mopd.distill.types import Prompt, UserError
from mopd.rollouts.tasks import TASKS, Example, fingerprint
from mopd.rollouts.tasks.arithmetic import scratchpad
from mopd.rollouts.tasks.base import deal_in_order
from mopd.rollouts.tasks.list_programs import PROBES, hidden_lists, parse, run_reference
from mopd.rollouts.tokenizer import build_tokenizer, completion_ids, encode, to_prompt

SPLITS = ("train", "validation", "test")
COUNT = 600


def make_prompt(example: Example) -> Prompt:
    return Prompt("any", example.id, (0,), example.text, example.answer)


def draw(name: str, split: str, count: int = COUNT, *, easy: bool = False, seed: int = 5) -> list[Example]:
    return [TASKS[name].example(seed=seed, split=split, index=i, easy=easy) for i in range(count)]


def meaning(name: str, text: str) -> object:
    """What a prompt asks for, read from the prompt by rules written here, not by the task's own."""
    if name == "arithmetic":
        return tuple(sorted(int(n) for n in re.findall(r"\d+", text)))
    if name == "ordering":
        followers = dict(re.findall(r"([A-Z])>([A-Z])", text))
        head = (set(followers) - set(followers.values())).pop()
        order = [head]
        while order[-1] in followers:
            order.append(followers[order[-1]])
        return "".join(order)
    more = [[(7 * i * k + k) % 40 - 15 for i in range(12)] for k in range(1, 25)]
    return tuple(repr(naive_program(text, x)) for x in PROBES + more)


def naive_program(text: str, x: list[int]) -> object:
    value = list(x)
    for word in text[len("code ") : -1].split(", "):
        name, _, number = word.partition(" ")
        n, out = int(number or 0), []
        for i in range(len(value)):
            v = value[i]
            if name in ("plus", "minus", "times"):
                out.append({"plus": v + n, "minus": v - n, "times": v * n}[name])
            keep = {
                "over": v > n,
                "under": v < n,
                "evens": v % 2 == 0,
                "odds": v % 2 == 1,
                "take": i < n,
                "skip": i >= n,
            }
            if keep.get(name, False):
                out.append(v)
        if name == "reverse":
            out = value[::-1]
        if name in ("sum", "count", "unique", "max", "min", "sort", "list"):
            total = {"sum": sum(value), "count": len(value), "unique": len(set(value)), "sort": sorted(value)}
            return total.get(name, value if name == "list" else max([0, *value]) if name == "max" else min([0, *value]))
        value = out
    raise AssertionError(f"no reducer in {text}")


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_across_forms_and_seeds(name: str) -> None:
    seen: dict[object, set[str]] = {}
    for split in SPLITS:
        for easy, seed in ((False, 0), (False, 101), (True, 0)):
            for example in draw(name, split, 300, easy=easy, seed=seed):
                seen.setdefault(meaning(name, example.text), set()).add(split)
    assert not {content: splits for content, splits in seen.items() if len(splits) > 1}


@pytest.mark.parametrize("name", TASKS)
def test_texts_of_splits_are_disjoint(name: str) -> None:
    texts = {split: {e.text for easy in (False, True) for e in draw(name, split, easy=easy)} for split in SPLITS}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_equivalent_contents_share_a_split() -> None:
    sums = {split: {e.text for e in draw("arithmetic", split, 2000, easy=True)} for split in SPLITS}
    for split, texts in sums.items():
        swapped = {re.sub(r"(\d+)\+(\d+)", r"\2+\1", text) for text in texts}
        assert not any(swapped & sums[other] for other in SPLITS if other != split)
    easy = {meaning("list_programs", e.text): s for s in SPLITS for e in draw("list_programs", s, easy=True)}
    hard = [(meaning("list_programs", e.text), s) for s in SPLITS for e in draw("list_programs", s, 1200)]
    both = [(easy[content], split) for content, split in hard if content in easy]
    assert len(both) >= 10, "no hard program does what an easy one does: the test shows nothing"
    assert all(a == b for a, b in both)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("easy", [False, True])
def test_verifier_accepts_gold_and_refuses_wrong(name: str, easy: bool) -> None:
    task, examples = TASKS[name], draw(name, "test", 200, easy=easy)
    prompts = [make_prompt(e) for e in examples]
    assert task.verify_many(prompts, [e.answer for e in examples]) == [1.0] * 200
    assert task.verify_many(prompts, [task.wrong_answer(e) for e in examples]) == [0.0] * 200
    gold = examples[0].answer
    junk = ["", " ", ";", "x", "0", gold[:-1], gold + "\n;", "(" * 500, "\x00é;"]
    assert task.verify_many(prompts[:1] * len(junk), junk) == [0.0] * len(junk)
    assert task.verify(prompts[0], gold) == 1.0


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_belongs_to_its_own_prompt(name: str) -> None:
    examples = draw(name, "validation", 100)
    prompts = [make_prompt(e) for e in examples]
    rotated = [examples[i - 1].answer for i in range(100)]
    assert sum(TASKS[name].verify_many(prompts, rotated)) <= 3


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_pure_and_distinct(name: str) -> None:
    first, again = draw(name, "test", 1000), draw(name, "test", 1000)
    assert first == again
    assert len({e.id for e in first}) == 1000
    assert len({e.text for e in first}) >= 980, "held-out problems recur"
    assert draw(name, "test", 50, seed=6) != first[:50]
    assert fingerprint(TASKS[name], seed=0) != fingerprint(TASKS[name], seed=1)
    with pytest.raises(UserError, match="no split 'tset'"):
        TASKS[name].example(seed=0, split="tset", index=0)


def test_few_hard_programs_recur() -> None:
    texts = Counter(e.text for e in draw("list_programs", "train", 4000))
    assert len(texts) >= 3800


def test_scratchpad_against_hand_computed() -> None:
    assert scratchpad(623, 597) == "3+7=10,2+9+1=12,6+5+1=12"
    assert scratchpad(12, 34) == "2+4=6,1+3=4"
    example = draw("arithmetic", "train", 1)[0]
    total = sum(int(n) for n in re.findall(r"\d+", example.text))
    prompt = make_prompt(example)
    assert TASKS["arithmetic"].verify(prompt, f"7+7=14;{total}") == 1.0
    assert TASKS["arithmetic"].verify(prompt, f"{total}") == 0.0
    assert TASKS["arithmetic"].verify(prompt, f";{total};1") == 0.0


@pytest.mark.parametrize("easy", [False, True])
def test_ordering_answers_follow_from_the_clues(easy: bool) -> None:
    for example in draw("ordering", "train", 200, easy=easy):
        order = meaning("ordering", example.text)
        assert isinstance(order, str)
        assert len(order) == (3 if easy else 4)
        place = int(example.text.split(" ")[2][:-1])
        assert example.answer == f"{order};{order[place - 1]}"


def test_reference_and_gold_programs_agree_with_a_naive_interpreter() -> None:
    for example in draw("list_programs", "train", 400) + draw("list_programs", "train", 100, easy=True):
        for x in hidden_lists(make_prompt(example)):
            want = naive_program(example.text, x)
            assert repr(run_reference(parse(example.text), x)) == repr(want)
            assert repr(eval(example.answer, {"x": x})) == repr(want)


def test_programs_are_executed_on_lists_that_the_prompt_hides() -> None:
    first, second = (make_prompt(e) for e in draw("list_programs", "test", 2))
    assert hidden_lists(first) != hidden_lists(second)
    assert hidden_lists(first) == hidden_lists(first)
    prompt = Prompt(
        "any", "list_programs/test/0-0-ab", (0,), "code over 2, plus 3, sum=", "sum([v+3 for v in x if v>2])"
    )
    verify = TASKS["list_programs"].verify
    assert verify(prompt, "sum(v+3 for v in x if 2<v)") == 1.0
    assert verify(prompt, "sum([v+3 for v in x if v>3])") == 0.0
    assert verify(prompt, str(naive_program(prompt.text, hidden_lists(prompt)[0]))) == 0.0
    assert verify(prompt, "__import__('os').getpid()") == 0.0


@pytest.mark.parametrize("vocabulary", [110, 160])
def test_tokenizer_round_trips_and_keeps_digits_single(vocabulary: int) -> None:
    texts = [t for name in TASKS for e in draw(name, "train", 300) for t in (e.text, e.answer)]
    tokenizer = build_tokenizer(texts, vocabulary)
    assert len(tokenizer) == vocabulary
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    for name in TASKS:
        for e in draw(name, "test", 100):
            ids = completion_ids(tokenizer, e.answer)
            assert ids.count(1) == 1
            assert ids[-1] == 1
            assert tokenizer.decode(ids, skip_special_tokens=False) == f"{e.answer}<eos>"
            assert "".join(tokenizer.convert_ids_to_tokens(list(encode(tokenizer, e.text)))) == e.text
            prompt = to_prompt(tokenizer, domain="d", example=e)
            assert prompt.token_ids == encode(tokenizer, e.text)
            assert (prompt.id, prompt.domain) == (e.id, "d")
    assert not [t for t in tokenizer.get_vocab() if len(t) > 1 and re.search(r"[A-Z0-9]", t)]
    assert encode(tokenizer, "£") == (2,)


def test_tokenizer_and_examples_are_the_same_in_another_process() -> None:
    code = (
        "import json; from mopd.rollouts.tasks import TASKS; from mopd.rollouts.tokenizer import build_tokenizer\n"
        "es = [t.example(seed=3, split='train', index=i) for t in TASKS.values() for i in range(200)]\n"
        "tk = build_tokenizer((s for e in es for s in (e.text, e.answer)), 140)\n"
        "print(json.dumps([[e.id for e in es], sorted(tk.get_vocab().items()), tk.backend_tokenizer.to_str()]))"
    )
    outputs = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        outputs.append(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        )
    assert json.loads(outputs[0].stdout) == json.loads(outputs[1].stdout)


@pytest.mark.parametrize("count", [3, 4, 5, 10, 20, 99])
def test_a_few_contents_are_dealt_so_that_no_split_is_empty(count: int) -> None:
    contents = [f"problem {n}" for n in range(count)]
    dealt = deal_in_order(contents)
    assert dealt == deal_in_order(contents[::-1])
    sizes = Counter(dealt.values())
    assert (sizes["test"], sizes["validation"]) == (max(1, count // 5), max(1, count // 10))
    assert sizes["train"] >= 1

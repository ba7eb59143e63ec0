"""Rollouts in a teacher's own tokens, and its answers on the student's: against loops over bytes and plain forwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from tokenizers_kit import HARD, byte_level, drawn_texts, unigram
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mopd.distill.loss.registry import bind
from mopd.distill.payloads import Chunked, Full, Sampled, TopK
from mopd.distill.recipe import ChunkedReverseKL, FaultRecipe
from mopd.distill.types import EpisodeRecord, GradingFailed, Prompt, Rollout
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.teacher_prompts import OwnTokenizer, tokenizer_side
from mopd.rollouts.tokenizer import encode, token_count
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint
from mopd.teachers.pool import TeacherPool
from mopd.teachers.retokenized import ChunkCount, Retokenized, Retokenizer, TokenizerSide
from mopd.teachers.scorer import Conditions
from mopd.teachers.token_bytes import TokenBytes
from mopd.teachers.views import TeacherText

CORPUS = [
    *HARD,
    *(f"{a}+{b}={a + b}, and the other {a * b} things in the house\n" for a in range(40) for b in range(9)),
]
LOSS = bind(ChunkedReverseKL(k=8))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes": byte_level(CORPUS, 400),
        "more bytes": byte_level([*CORPUS, *drawn_texts(50, seed=9)], 600),
        "unigram": unigram(CORPUS, 500),
        "folding": unigram(CORPUS, 450, prepend="never", normalizer=normalizers.NFKC()),
    }


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.get_vocab()["<eos>"]


def rollout_of(
    ids: Sequence[int], *, ended: bool = True, index: int = 0, logprobs: Sequence[float] | None = None
) -> Rollout:
    prompt = (3, 4, 5)
    n = len(ids)
    drawn = np.random.default_rng(index).uniform(-3, -0.1, n) if logprobs is None else np.array(logprobs)
    return Rollout(
        prompt=Prompt("math", f"math/{index}", prompt, "2+2=", "4"),
        token_ids=np.array([*prompt, *ids], dtype=np.int32),
        loss_mask=np.arange(n + len(prompt)) >= len(prompt),
        sampler_logprobs=np.array([0.0] * len(prompt) + [*drawn], dtype=np.float32),
        finish="eos" if ended else "length",
        version=(0, 0),
        group=index,
        index=index,
    )


def written(tokenizer: PreTrainedTokenizerBase, text: str, *, index: int = 0) -> Rollout:
    return rollout_of([*encode(tokenizer, text), end_of(tokenizer)], index=index)


def retokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, context: int | None = None
) -> Retokenizer:
    support = support_of(LOSS, student)
    assert support is not None
    return Retokenizer(
        "other",
        student=tokenizer_side(OwnTokenizer(student, (end_of(student),)), "the student"),
        teacher=tokenizer_side(OwnTokenizer(teacher, (end_of(teacher),)), "the teacher"),
        reads=lambda prompt: TeacherText("2+2=", encode(teacher, "2+2=")),
        context=context,
        width=min(support.k + len(support.forced), token_count(student)),
    )


def completion(read: Retokenized) -> list[int]:
    return read.rollout.token_ids[read.rollout.loss_mask].tolist()


@pytest.mark.parametrize("names", [("bytes", "more bytes"), ("more bytes", "unigram"), ("unigram", "bytes")])
def test_a_rollout_is_read_as_the_teachers_tokenizer_writes_its_text_and_closes_it(
    tokenizers: dict[str, PreTrainedTokenizerFast], names: tuple[str, str]
) -> None:
    student, teacher = (tokenizers[name] for name in names)
    writes, count = retokenizer(student, teacher), ChunkCount()
    texts = [*HARD, *drawn_texts(60, seed=4), "", *CORPUS[:20]]
    for text in texts:
        rollout = written(student, text)
        read = writes(rollout)
        # What a verifier sees, too: a SentencePiece tokenizer takes a first space for its own.
        seen = str(student.decode(rollout.token_ids[rollout.loss_mask][:-1]))  # not per token
        assert completion(read) == [*encode(teacher, seen), end_of(teacher)]
        assert read.rollout.token_ids[: len(read.text.token_ids)].tolist() == [*encode(teacher, "2+2=")]
        assert not read.unscored
        count.add(read)
        assert read.chunks.teacher_sizes[-1] == 1, "the last chunk is what closes both"
        assert read.chunks.student_sizes[-1] == 1 or not seen
    assert 0.1 < count.share < 1.0
    assert count.metrics("x")["unscored/x"] == 0.0


def test_what_has_not_the_same_bytes_is_in_no_chunk_and_counted_by_its_reason(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    student, unigram_teacher = tokenizers["bytes"], tokenizers["unigram"]
    writes, end = retokenizer(student, unigram_teacher), end_of(student)
    good, smile = list(encode(student, "7 things")), list(encode(student, "\U0001f9ff"))
    assert len(smile) > 1, "a character in several tokens"
    count = ChunkCount()

    def read(ids: Sequence[int], *, ended: bool = True, by: Retokenizer = writes) -> Retokenized:
        result = by(rollout_of(ids, ended=ended))
        count.add(result)
        assert result.chunks.student_sizes.sum() + sum(result.unscored.values()) == len(ids)
        return result

    half = read([*good, smile[0], *good, end])
    assert half.unscored == {"text": 2 + len(good)}
    assert half.chunks.student_C[-1] == len(good)
    assert completion(half) == [*encode(unigram_teacher, "7 things")]
    assert read([*good, end, *good, end]).unscored == {"control": 2 + len(good)}
    # SentencePiece has no letter for the character that stands for a space.
    other = read([*good, *encode(student, "\u2581x"), end])
    assert set(other.unscored) == {"other"}
    assert other.unscored["other"] < len(good) + 5, "what is before it is scored"
    folding = retokenizer(student, tokenizers["folding"])
    assert set(read([*good, *encode(student, " ﬁne"), end], by=folding).unscored) == {"other"}
    cut = read(good, ended=False)
    assert cut.unscored == {"cut": int(writes(rollout_of([*good, end])).chunks.student_sizes[-2])}
    short = retokenizer(student, unigram_teacher, context=len(encode(unigram_teacher, "2+2=")) + 1)
    assert set(read([*good, end], by=short).unscored) == {"context"}
    nothing = read([smile[0], end])
    assert nothing.unscored == {"text": 2}
    assert completion(nothing) == [end_of(unigram_teacher)], "a request has a token"
    metrics = count.metrics("x")
    reasons = [name for name in metrics if name.startswith("unscored/x/")]
    assert {name.rpartition("/")[2] for name in reasons} == {"text", "control", "other", "cut", "context"}
    assert sum(metrics[name] for name in reasons) == pytest.approx(metrics["unscored/x"])


def test_an_episode_of_several_turns_is_refused(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    student = tokenizers["bytes"]
    whole = written(student, "7 things")
    mask_T = whole.loss_mask.copy()
    mask_T[4] = False
    episode = Rollout(
        whole.prompt, whole.token_ids, mask_T, whole.sampler_logprobs, "eos", (0, 0), 0, 0,
        episode=EpisodeRecord(1.0, "done", turns=2),
    )  # fmt: skip
    with pytest.raises(
        GradingFailed, match="'other' has another tokenizer, and rollout 0 of domain 'math' has several"
    ):
        retokenizer(student, tokenizers["unigram"])(episode)


# ---- what comes back


class Plain:
    """A tiny teacher with tokens of its own, and its log-probabilities after given tokens, one forward each."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        torch.manual_seed(1)
        config = AutoConfig.for_model(
            "llama", vocab_size=token_count(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=end_of(tokenizer),
        )  # fmt: skip
        self.model: Any = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            self.model.lm_head.weight.mul_(20)  # so that it prefers some tokens
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.path = str(folder)

    @torch.no_grad()
    def after(self, ids: Sequence[int]) -> np.ndarray:
        return self.model(input_ids=torch.tensor([[*ids]])).logits[0, -1].double().log_softmax(-1).numpy()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, PreTrainedTokenizerFast]) -> Plain:
    return Plain(tmp_path_factory.mktemp("plain"), tokenizers["unigram"])


def scores(plain: Plain, read: Retokenized) -> np.ndarray:
    """The teacher's distribution at each token that it reads of the answer, ``(M, V)``, in float64."""
    ids, prompt = read.rollout.token_ids.tolist(), len(read.text.token_ids)
    return np.stack([plain.after(ids[:s]) for s in range(prompt, len(ids))])


TEXTS = ["7 things and 3", "the house, 1+2=3\n", "two  spaces", "e\u0301 \U0001f44d"]


def test_sampled_scores_credit_every_token_of_a_chunk_with_its_log_ratio(
    tokenizers: dict[str, PreTrainedTokenizerFast], plain: Plain
) -> None:
    student = tokenizers["bytes"]
    writes = retokenizer(student, tokenizers["unigram"])
    several = 0
    for index, text in enumerate(TEXTS):
        read = writes(written(student, text, index=index))
        logq_MV, ids = scores(plain, read), completion(read)
        logq_M = np.array([row[i] for row, i in zip(logq_MV, ids, strict=True)])
        answer = writes.payload(read, Sampled(logq_M.astype(np.float32)))
        measured = writes.payload(read, Sampled(logq_M.astype(np.float32)), learnt=False)
        assert isinstance(answer, Sampled)
        assert isinstance(measured, Sampled)
        drawn_N = read.original.sampler_logprobs[read.original.loss_mask].astype(np.float64)
        a = b = 0
        for end, stop in zip(read.chunks.student_C, read.chunks.teacher_C, strict=True):
            ratio = logq_M[b:stop].sum() - drawn_N[a:end].sum()
            for t in range(a, end):
                assert answer.logprobs_T[t] - drawn_N[t] == pytest.approx(ratio, abs=1e-3)
            assert measured.logprobs_T[a:end].sum() == pytest.approx(logq_M[b:stop].sum(), abs=1e-3)
            several += end - a > 1
            a, b = end, stop
        assert (a, b) == (len(drawn_N), len(ids))
    assert several > 3


STUDENT, TEACHER = ("a", "b", "c"), ("a", "ab", "abc", "b", "c")
"""Tokens after END, which is 0 of both."""


def by_hand(tokens: Sequence[str]) -> TokenizerSide:
    """A tokenizer that takes the longest token that fits."""

    def ids(text: str) -> list[int]:
        if not text:
            return []
        token = max((token for token in tokens if text.startswith(token)), key=len)
        return [tokens.index(token) + 1, *ids(text.removeprefix(token))]

    return TokenizerSide(
        TokenBytes((None, *(token.encode() for token in tokens)), leads=False),
        ids,
        (0,),
        lambda texts: [ids(text) for text in texts],
    )


def answered(text: str, *rows: dict[str, float]) -> tuple[Chunked, Retokenized]:
    """What a teacher says of a text and its END: ``rows`` are its probabilities at each of its own tokens."""
    writes = Retokenizer(
        "other", student=by_hand(STUDENT), teacher=by_hand(TEACHER), reads=lambda prompt: TeacherText("", (1,)),
        context=None, width=4,
    )  # fmt: skip
    read = writes(rollout_of([*(STUDENT.index(letter) + 1 for letter in text), 0]))
    names = ("$", *TEACHER)
    probs = np.array([[row.get(name, 1e-9) for name in names] for row in rows])
    ids = np.tile(np.arange(6, dtype=np.int32), (len(rows), 1))
    sampled = np.log(probs[range(len(rows)), completion(read)]).astype(np.float32)
    topk = TopK(ids, np.log(probs).astype(np.float32), np.full(len(rows), -np.inf, dtype=np.float32), sampled)
    answer = writes.payload(read, topk)
    assert isinstance(answer, Chunked)
    return answer, read


def said(answer: Chunked, t: int) -> dict[str, float]:
    """The probabilities of a row by the student's tokens."""
    used = answer.logprobs_TK[t] > -np.inf
    names = ("$", *STUDENT)
    pairs = zip(answer.ids_TK[t][used].tolist(), np.exp(answer.logprobs_TK[t][used]).tolist(), strict=True)
    return {names[i]: p for i, p in pairs}


def test_a_long_token_of_the_teachers_is_a_distribution_at_each_of_the_students_in_it() -> None:
    answer, read = answered("ab", {"a": 0.1, "ab": 0.5, "abc": 0.3, "b": 0.1}, {"$": 0.6, "a": 0.4})
    assert (read.chunks.student_C.tolist(), read.chunks.teacher_C.tolist()) == ([2, 3], [1, 2])
    assert said(answer, 0) == pytest.approx({"a": 0.9, "b": 0.1}, rel=1e-5)
    assert said(answer, 1) == pytest.approx({"b": 0.8 / 0.9}, rel=1e-5), "that `a` ends its token is no letter"
    # That it wrote `ab` and not `abc` says what follows, too: 0.5 of 0.8 that it cuts here, 0.3 that `c` is next.
    assert said(answer, 2) == pytest.approx({"c": 0.375, "$": 0.625 * 0.6, "a": 0.625 * 0.4}, rel=1e-5)
    assert answer.chunk_T.tolist() == [-1, -1, -1]
    assert answer.rest_T[1] == pytest.approx(math.log(1 - 0.8 / 0.9), rel=1e-4)
    logq = math.log(0.5), math.log(0.6)
    assert (answer.sampled_T[:2].sum(), answer.sampled_T[2]) == pytest.approx(logq, abs=1e-5)


def test_what_the_teacher_finds_unlikely_is_learnt_from_as_it_was_drawn() -> None:
    answer, _ = answered("ba", {"a": 0.995, "b": 0.005}, {"a": 0.5, "abc": 0.5}, {"$": 1.0})
    assert said(answer, 0) == pytest.approx({"a": 0.995}, rel=1e-5)
    assert answer.chunk_T.tolist() == [0, -1, -1]
    assert answer.owed_T[0] == pytest.approx(math.log(0.005), rel=1e-5)
    assert said(answer, 1) == pytest.approx({"a": 1.0}, rel=1e-5)
    # Cut after `a`, one half; the other half goes on with `b`.
    assert said(answer, 2) == pytest.approx({"b": 0.5, "$": 0.5}, rel=1e-5)
    # Of `abc` the second letter is unlikely: it and the third are learnt from together, less what is said of the first.
    answer, _ = answered("abc", {"a": 0.993, "abc": 0.007}, {"$": 1.0})
    assert (said(answer, 0), said(answer, 1), said(answer, 2)) == ({"a": pytest.approx(1.0)}, {}, {})
    assert answer.chunk_T.tolist() == [-1, 0, 0, -1]
    assert answer.owed_T[1:3].tolist() == pytest.approx([math.log(0.007)] * 2, rel=1e-4)


def test_a_pool_asks_teachers_with_and_without_tokens_of_their_own(
    cluster: None, tmp_path: Path, tokenizers: dict[str, PreTrainedTokenizerFast], plain: Plain
) -> None:
    student, teacher = tokenizers["bytes"], tokenizers["unigram"]
    alike = Plain(tmp_path / "alike", student)
    specs = {}
    for name, model, tokenizer in (("alike", alike, student), ("other", plain, teacher)):
        conditions = Conditions(1.0, 64, support_of(LOSS, tokenizer), token_count(tokenizer))
        specs[name] = TeacherSpec(Checkpoint(model.path, "cpu", "float32"), conditions, 0.0, 1)
    writes = retokenizer(student, teacher)
    pool = TeacherPool(
        specs,
        routes={"math": {"alike": 0.5, "other": 0.5}},
        payload="chunked",
        faults=FaultRecipe(),
        say=print,
        retokenizers={"other": writes},
    )
    sizes = pool.wait_until_ready()
    assert sizes == {"alike": token_count(student), "other": token_count(teacher)}
    rollouts = [written(student, text, index=index) for index, text in enumerate(TEXTS)]
    for scored in pool.score([rollouts[:1], rollouts[1:]]):
        by_name = {score.teacher: score.payload for _, score in scored.scores}
        of_alike, of_other = by_name["alike"], by_name["other"]
        assert isinstance(of_alike, Chunked)
        assert isinstance(of_other, Chunked)
        assert of_alike.ids_TK.shape == of_other.ids_TK.shape, "a loss reads both in one tensor"
        ids = scored.rollout.token_ids.tolist()
        expected = [alike.after(ids[:t])[ids[t]] for t in range(3, len(ids))]
        np.testing.assert_allclose(of_alike.sampled_T, expected, atol=1e-4)
        for n, i in enumerate(ids[3:]):  # not per token
            outside = i not in of_alike.ids_TK[n]
            assert of_alike.chunk_T[n] == (n if outside else -1)
            assert of_alike.owed_T[n] == pytest.approx(expected[n] if outside else 0.0, abs=1e-4)
        read = writes(scored.rollout)
        total = sum(row[i] for row, i in zip(scores(plain, read), completion(read), strict=True))
        assert of_other.sampled_T.sum() == pytest.approx(total, abs=1e-3)
    metrics = pool.metrics()
    assert 0 < metrics["aligned/other"] < 1
    assert metrics["unscored/other"] == 0
    assert "aligned/alike" not in metrics
    trial = pool.dry_run("other", rollouts)
    assert trial.aligned is not None
    assert trial.aligned.share == pytest.approx(metrics["aligned/other"])
    assert trial.reference is not None
    np.testing.assert_allclose(trial.reference, trial.answers[0][0], atol=1e-3)
    for rollout, answer in zip(rollouts, trial.answers[0], strict=True):
        assert answer.shape == rollout.token_ids.shape
    measured = pool.score([rollouts], asking="sampled")
    assert all(isinstance(score.payload, Sampled) for scored in measured for _, score in scored.scores)
    assert "aligned/other" not in pool.metrics(), "what is measured is not counted as learnt from"
    read = writes(rollouts[0])
    with pytest.raises(GradingFailed, match="'other' has another tokenizer, and gave Full"):
        writes.payload(read, Full(np.zeros((len(read.rollout.token_ids), 2), dtype=np.float32)))

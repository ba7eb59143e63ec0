"""Alignment of two tokenizers at bytes: against a loop over bytes, for kinds of tokenizers and texts of all scripts."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from public_data_kit import public_rows
from tokenizers import Tokenizer, decoders, models
from tokenizers_kit import HARD, byte_level, characters, drawn_texts, unigram, words
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mopd.distill.types import UserError
from mopd.rollouts.tokenizer import control_ids
from mopd.teachers.alignment import align
from mopd.teachers.token_bytes import TokenBytes, token_bytes

SMOLLM2 = Path(os.environ.get("MOPD_SMOLLM2", "models/SmolLM2-135M-Instruct"))
CORPUS = [
    *HARD,
    *(f"{a}+{b}={a + b}, and the other {a * b} things in the house\n" for a in range(40) for b in range(9)),
]


def sides(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    return token_bytes(tokenizer, control_ids(tokenizer))


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: Any = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def strings(tokenizer: PreTrainedTokenizerBase, side: TokenBytes, text: str) -> list[bytes]:
    tokens = [side.bytes_V[i] for i in ids_of(tokenizer, text)]
    assert None not in tokens, text
    return [token for token in tokens if token is not None]


@pytest.fixture(scope="module")
def made() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes-400": byte_level(CORPUS, 400),
        "bytes-700": byte_level(CORPUS, 700),
        "prefixed": byte_level(CORPUS, 500, prefix=True),
        "unigram": unigram(CORPUS, 600),
        "unigram-bare": unigram(CORPUS, 450, prepend="never"),
    }


def naive_cuts(student: list[bytes], teacher: list[bytes]) -> list[int]:
    """Bytes after which both cut, up to the first in which they differ: byte by byte."""

    def marks(tokens: list[bytes]) -> list[tuple[int, bool]]:
        return [(byte, n == len(token) - 1) for token in tokens for n, byte in enumerate(token)]

    cuts = []
    for place, ((a, ends), (b, stops)) in enumerate(zip(marks(student), marks(teacher), strict=False)):
        if a != b:
            break
        if ends and stops:
            cuts.append(place + 1)
    return cuts


def test_the_bytes_of_a_texts_tokens_are_the_texts_in_every_kind_of_tokenizer(
    made: dict[str, PreTrainedTokenizerFast],
) -> None:
    for name, tokenizer in made.items():
        side = sides(tokenizer)
        assert side.leads == (name in ("prefixed", "unigram")), name
        for text in [*HARD, *drawn_texts(200, seed=1)]:
            written = b"".join(strings(tokenizer, side, text))
            led = written[1:] if written == b" " + text.encode() else written
            assert led == text.encode(), (name, text)


@pytest.mark.parametrize(
    "pair", [("bytes-400", "bytes-700"), ("bytes-700", "unigram-bare"), ("unigram-bare", "bytes-400")]
)
def test_chunks_are_where_a_loop_over_bytes_finds_them_and_lose_nothing(
    made: dict[str, PreTrainedTokenizerFast], pair: tuple[str, str]
) -> None:
    student, teacher = (made[name] for name in pair)
    one, other = sides(student), sides(teacher)
    several = 0
    for text in [*HARD, *drawn_texts(300, seed=2), *CORPUS[:40]]:
        tokens, others = strings(student, one, text), strings(teacher, other, text)
        chunks = align(tokens, others)
        cuts = naive_cuts(tokens, others)
        ends = [0, *chunks.student_C.tolist()]
        stops = [0, *chunks.teacher_C.tolist()]
        pieces = [b"".join(tokens[a:b]) for a, b in itertools.pairwise(ends)]
        assert pieces == [b"".join(others[a:b]) for a, b in itertools.pairwise(stops)]
        assert [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))] == cuts
        assert b"".join(pieces) == text.encode(), "both end at the end of the text"
        assert (ends[-1], stops[-1]) == (len(tokens), len(others))
        several += len(tokens) - chunks.alike
    assert several > 20, "the two do cut otherwise"


def test_a_character_cut_into_bytes_is_one_chunk_with_it_whole() -> None:
    emoji = "👍".encode()
    chunks = align([b"a", emoji[:1], emoji[1:3], emoji[3:], b"b"], [b"a", emoji + b"b"])
    assert (chunks.student_C.tolist(), chunks.teacher_C.tolist(), chunks.alike) == ([1, 5], [1, 2], 1)
    assert chunks.closed(6, 3).student_C.tolist() == [1, 5, 6]
    assert chunks.upto(4, 9).student_C.tolist() == [1]


def test_lone_bytes_as_a_student_may_sample_them_are_aligned_up_to_the_first_that_differs() -> None:
    rng = random.Random(0)
    for _ in range(300):
        data = bytes(rng.choice(b"ab\xf0\x9f\xff") for _ in range(rng.randint(1, 12)))

        def cut(data: bytes) -> list[bytes]:
            places = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(4))})
            return [data[a:b] for a, b in itertools.pairwise(places)]

        other = data if rng.random() < 0.5 else data[: rng.randint(0, len(data))] + b"?" + data
        tokens, others = cut(data), cut(other)
        chunks = align(tokens, others)
        done = [0, *chunks.student_C.tolist()]
        sizes = [sum(map(len, tokens[:n])) for n in done[1:]]
        assert sizes == naive_cuts(tokens, others)
        if other == data:
            assert done[-1] == len(tokens)
    empty = align([b"", b"a", b"", b"b"], [b"a", b"b", b""])
    assert (empty.student_C.tolist(), empty.teacher_C.tolist()) == ([3, 4], [1, 3])


def test_words_and_characters_have_the_bytes_that_decoding_gives() -> None:
    spaced = words(["the cat sat", "the mat"])
    side = sides(spaced)
    assert b"".join(strings(spaced, side, "the cat")) == b" the cat"
    assert side.leads
    plain = characters(CORPUS, 160)
    for text in ("3+4=7, and the house", "12 other things"):
        assert b"".join(strings(plain, sides(plain), text)) == text.encode()
        assert plain.decode(ids_of(plain, text)) == text


def test_control_tokens_have_no_bytes_and_bytes_that_are_tokens_have(made: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = made["unigram"]
    side = sides(tokenizer)
    numbers = tokenizer.get_vocab()
    assert side.bytes_V[numbers["<eos>"]] is None
    assert side.bytes_V[numbers["<0x0A>"]] == b"\n"


def test_a_tokenizer_whose_tokens_do_not_tell_their_bytes_is_refused_by_what_it_does() -> None:
    piece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]", continuing_subword_prefix="##"))
    piece.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"marks words with '##' \(continuing_subword_prefix\)"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=piece), ())
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    plain.decoder = decoders.CTC()
    with pytest.raises(UserError, match="decodes its tokens by CTC"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=plain), ())


# ---- public text


def public_texts() -> dict[str, list[str]]:
    return {
        "GSM8K": [f"{row['question']}\n{row['answer']}" for row in public_rows("gsm_test.jsonl")],
        "Python": [row["code"] for row in public_rows("mbpp.jsonl")]
        + [row["prompt"] + row["canonical_solution"] for row in public_rows("humaneval.jsonl")],
        "MATH": [row["question"] for row in public_rows("math_train.json")[:3000]],
        "hard": [*HARD, *drawn_texts(500, seed=3)],
    }


@pytest.fixture(scope="module")
def public() -> tuple[dict[str, list[str]], dict[str, PreTrainedTokenizerBase]]:
    """Public texts by subject; tokenizers of up to 32 000 tokens that were trained on them, and SmolLM2's if there."""
    texts = public_texts()
    corpus = [text for part in texts.values() for text in part]
    made: dict[str, PreTrainedTokenizerBase] = {"BPE": byte_level(corpus, 32_000), "Unigram": unigram(corpus, 32_000)}
    if (SMOLLM2 / "tokenizer.json").is_file():
        made["SmolLM2"] = AutoTokenizer.from_pretrained(SMOLLM2)
    return texts, made


@pytest.mark.parametrize("pair", [("BPE", "Unigram"), ("Unigram", "BPE"), ("SmolLM2", "BPE"), ("SmolLM2", "Unigram")])
def test_public_text_is_aligned_without_a_byte_lost(public: Any, pair: tuple[str, str], capsys: Any) -> None:
    texts, made = public
    if missing := [name for name in pair if name not in made]:
        pytest.skip(f"no {missing[0]}: {SMOLLM2} has no tokenizer (MOPD_SMOLLM2 names the folder)")
    student, teacher = (made[name] for name in pair)
    one, other = sides(student), sides(teacher)
    for subject, rows in texts.items():
        tokens_in_all = alike = 0
        for text in rows:
            tokens, others = strings(student, one, text), strings(teacher, other, text)
            for written in (tokens, others):  # a space of the tokenizer's own stands before the text
                written[0] = written[0][len(b"".join(written)) - len(text.encode()) :]
                assert b"".join(written) == text.encode()
            chunks = align(tokens, others)
            assert chunks.student_C[-1:].tolist() == [len(tokens)], (subject, text)
            assert chunks.teacher_C[-1:].tolist() == [len(others)], (subject, text)
            tokens_in_all += len(tokens)
            alike += chunks.alike
        with capsys.disabled():
            print(f"\n{pair[0]} by {pair[1]}, {subject}: {100 * alike / tokens_in_all:.1f}% of tokens one to one")
        assert alike > (0.02 if subject == "hard" else 0.2) * tokens_in_all

"""Tokenizers of several kinds, trained on given texts, and texts that are hard on them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mopd.rollouts.tokenizer import EOS, PAD, UNKNOWN, build_tokenizer

HARD = (
    "naïve café, e\u0301 and n\u0303, a\u0308\u0323",  # combining marks, two on one letter
    "👍🏽 👩‍👩‍👧 🇩🇪 ok",  # skin tone, joined family, flag
    "数学は楽しい。한국어 ไทย हिन्दी",
    "def f(x):\n\treturn {'a': x**2}  # ∑\r\n",
    "  two spaces, trailing  ",
    " ",
    "\n\n",
    "x\u200b\u00a0\ufeffy",
    "<|im_end|> spelled, and Ġ",
)
"""Spaces, combining marks, emoji, scripts without spaces, and what looks like a token."""


def drawn_texts(count: int, *, seed: int) -> list[str]:
    """Texts of characters from everywhere, a pure function of the seed."""
    rng = random.Random(seed)
    ranges = [
        (0x20, 0x7E),
        (0xA0, 0x17F),
        (0x300, 0x36F),
        (0x4E00, 0x4FFF),
        (0x1F300, 0x1F6FF),
        (9, 13),
        (0xFE00, 0xFE0F),
    ]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            low, high = rng.choice(ranges)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))))
        texts.append(rng.choice(["", " "]).join(parts))
    return texts


def _made(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False, **special
    )


def byte_level(texts: Sequence[str], vocabulary: int, *, prefix: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _made(tokenizer)


def unigram(
    texts: Sequence[str], vocabulary: int, *, prepend: str = "first", normalizer: normalizers.Normalizer | None = None
) -> PreTrainedTokenizerFast:
    """A Unigram model that falls back on bytes, as SentencePiece's.

    Args:
        prepend: whether a text begins with a space of its own: "first", "always" or "never".
    """
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=vocabulary - 259, show_progress=False, special_tokens=[])
    )
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    control = [(UNKNOWN, 0.0), (PAD, 0.0), (EOS, 0.0)]
    of_bytes = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*control, *of_bytes, *pieces], unk_id=0, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _made(tokenizer, unk_token=UNKNOWN)


def words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, joined with spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)
    )
    return _made(tokenizer, unk_token=UNKNOWN)


def characters(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """The kind that models made from scratch have."""
    return build_tokenizer(texts, vocabulary)

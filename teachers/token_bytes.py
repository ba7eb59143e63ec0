"""The bytes that every token of a tokenizer stands for, exactly: what tokens of two tokenizers are compared by.

A token's text is not enough: it may be a part of a character, and decoding joins tokens by rules of its own. The bytes
of a text's tokens, one after the other, are the text's, but for a space that some tokenizers begin every text with.

Shape legend: V ids of a tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import UserError

METASPACE = "\u2581"
"""What stands for a space in the tokens of SentencePiece."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token that is a byte by itself, of a tokenizer that falls back on bytes."""


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What the tokens of a tokenizer stand for.

    Attributes:
        bytes_V: of every id; None of a control token, such as EOS, and of an id that is no token.
        leads: whether the tokenizer begins every text with a space that is not in it.

    Example:
        Of a byte-level tokenizer the token ``Ġthe`` is ``b" the"`` and one of the three of ``€`` is ``b"\\xe2"``.
    """

    bytes_V: tuple[bytes | None, ...]
    leads: bool


def token_bytes(tokenizer: PreTrainedTokenizerBase, control: Collection[int]) -> TokenBytes:
    """The bytes of a tokenizer's tokens.

    Args:
        control: ids that are no text.

    Raises:
        UserError: it does not say; the message is a predicate, such as "marks the ends of words ...".
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"is a {type(tokenizer).__name__} in Python, which does not say which bytes its tokens are; save it as a "
            "tokenizer.json"
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    as_bytes = _rule(spec)
    size = max(tokenizer.get_vocab().values()) + 1
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    made: list[bytes | None] = []
    for i, text in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
        if i in control or text is None:
            made.append(None)
        else:
            made.append(added[i].encode() if i in added else as_bytes(text))
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    written = b"".join(made[i] or b"" for i in ids)
    return TokenBytes(tuple(made), leads=spec.get("decoder") is None or written.startswith(b" "))


def _rule(spec: dict[str, Any]) -> Callable[[str], bytes]:
    """How the text of a token becomes its bytes, by the decoder of the tokenizer's JSON."""
    decoders = list(_steps(spec.get("decoder")))
    kinds, model = {step["type"] for step in decoders}, spec["model"]
    for key in ("end_of_word_suffix", "continuing_subword_prefix"):
        if model.get(key):
            raise UserError(
                f"marks words with {model[key]!r} ({key}), so that spaces cannot be told from its tokens; take a "
                "byte-level or a SentencePiece tokenizer"
            )
    marks = {step["replacement"] for step in decoders if step["type"] == "Metaspace"}
    marks |= {step["pattern"]["String"] for step in decoders if _is_space(step)}
    if "ByteLevel" in kinds:
        return _of_byte_level
    if marks:
        return lambda text: _of_metaspace(
            text, marks, fallback="ByteFallback" in kinds or bool(model.get("byte_fallback"))
        )
    if not decoders:  # tokens are joined with spaces, the first as if one stood before it
        return lambda text: b" " + text.encode()
    if kinds == {"Fuse"}:
        return str.encode
    raise UserError(
        f"decodes its tokens by {', '.join(sorted(kinds))}, of which no token's bytes can be told; take a "
        "byte-level or a SentencePiece tokenizer"
    )


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _is_space(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and "String" in step["pattern"] and step["content"] == " "


def _of_metaspace(text: str, marks: Collection[str], *, fallback: bool) -> bytes:
    if fallback and (byte := _BYTE.fullmatch(text)) is not None:
        return bytes([int(byte[1], 16)])
    for mark in marks:
        text = text.replace(mark, " ")
    return text.encode()


def _byte_of_character() -> dict[str, int]:
    """Which byte a character of a byte-level token stands for.

    Source: GPT-2's ``bytes_to_unicode``: printable bytes are themselves, the others follow from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _of_byte_level(text: str) -> bytes:
    if all(character in _BYTES for character in text):
        return bytes(_BYTES[character] for character in text)
    return text.encode()  # as the decoder of the library has it

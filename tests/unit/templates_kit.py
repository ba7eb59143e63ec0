"""Chat templates as published, from the package trl (1.16), which keeps them byte by byte; tokenizers made here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPEC = importlib.util.find_spec("trl")
assert SPEC is not None
assert SPEC.origin is not None
TEMPLATES = Path(SPEC.origin).parent / "chat_templates"
MARK = re.compile(r"<\|[A-Za-z_]+\|>|<｜[^｜<>]+｜>|<start_of_turn>|<end_of_turn>|<bos>")
CLOSINGS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "glm4moe": "<|user|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "nemotron_3_nano": "<|im_end|>",
}
"""What closes a turn of the assistant, by the template's name in trl (its README says of which model each is)."""


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges and the family's control tokens, under the family's template."""
    template = (TEMPLATES / f"{family}.jinja").read_text()
    marks = sorted({*MARK.findall(template), CLOSINGS[family]})
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=marks, show_progress=False
    )
    made.train_from_iterator([template], trainer)  # merges within what templates write, where a cut could differ
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=CLOSINGS[family],
        pad_token=CLOSINGS[family],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer

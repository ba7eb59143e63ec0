"""Byte-pair tokenizers for models made from scratch, and how an example becomes tokens.

Digits and capital letters stay single tokens, because sums and orderings are worked out character by character; merges
are learnt within what lies between them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from mopd.distill.types import Prompt, Rollout, UserError
from mopd.rollouts.tasks.base import Example

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Turns as Qwen's models have them, without tools."""
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<[a-z_]{1,40}>|</[a-z_]{1,40}>|\[/?[A-Z_]{2,40}\]")
"""What in a chat template is a token of its own: `<|im_end|>`, `<start_of_turn>`, `[INST]`."""


def read_template(named: str | None) -> str | None:
    """The text of a chat template: ``chatml``, or a file's; None where none is named.

    Raises:
        UserError: the file cannot be read.
    """
    if named is None or named == "chatml":
        return None if named is None else CHATML
    try:
        return Path(named).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`chat_template` {named} cannot be read ({error}); name a file that holds a Jinja template"
        ) from error


def give_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Let a tokenizer write turns as ``template`` says; with None it stays as it is.

    Raises:
        UserError: a control token of the template is no token of this tokenizer.
    """
    if template is None:
        return
    known = tokenizer.get_vocab()
    if lacking := [token for token in dict.fromkeys(_CONTROL.findall(template)) if token not in known]:
        raise UserError(
            f"`chat_template` writes {', '.join(lacking)}, which `tokenizer` has not; give the template where that "
            f"tokenizer is trained, or take one that fits it"
        )
    tokenizer.chat_template = template


def build_tokenizer(texts: Iterable[str], vocabulary: int, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer; the same texts give the same tokenizer, on any machine.

    Args:
        texts: prompts and answers. Their characters are the alphabet; any other character becomes ``<unk>``.
        vocabulary: tokens at most, the special ones included; fewer where the texts offer no more merges.
        chat_template: its control tokens become tokens, and the names of roles text that can be written.

    Returns:
        A tokenizer that adds no special tokens of its own; ``<pad>`` is 0, ``<eos>`` is 1, ``<unk>`` is 2. Its decoding
        is the plain concatenation of its tokens.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[A-Z0-9]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    control = [] if chat_template is None else list(dict.fromkeys(_CONTROL.findall(chat_template)))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[PAD, EOS, UNKNOWN, *control], show_progress=False
    )
    roles = [] if chat_template is None else ["system\nuser\nassistant\n"] * 2
    tokenizer.train_from_iterator(itertools.chain(texts, roles), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **({"extra_special_tokens": control} if control else {}),
    )
    give_template(made, chat_template)
    return made


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, letters: Sequence[tuple[int, int]] = ()
) -> tuple[int, ...]:
    """The token ids of a text, without special tokens of the tokenizer's own accord.

    Args:
        letters: parts of the text, as (start, end) in their order, that are written as the letters they are even where
            they spell a control token.

    Raises:
        ValueError: the tokenizer takes such a part for a control token all the same.
    """
    if not letters:
        return tuple(cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"]))
    ids: list[int] = []
    reached = 0
    for start, end in letters:
        spelled = cast(
            list[int], tokenizer(text[start:end], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
        if control := [i for i in spelled if i in control_ids(tokenizer) and i != tokenizer.unk_token_id]:
            raise ValueError(f"the tokenizer writes {text[start:end]!r} as the control token {control[0]} only")
        ids += [*encode(tokenizer, text[reached:start]), *spelled]
        reached = end
    return (*ids, *encode(tokenizer, text[reached:]))


def control_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that are no text, ascending: EOS, padding, turns of a chat, calls of tools, whatever is marked so."""
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(marked.union(tokenizer.all_special_ids)))


def control_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """:func:`control_ids` as they are written, longest first."""
    texts = tokenizer.convert_ids_to_tokens(list(control_ids(tokenizer)))
    return tuple(sorted((text for text in texts if text), key=lambda text: (-len(text), text)))


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids a tokenizer has. A model's output head may have more rows, which stand for no token."""
    return max(tokenizer.get_vocab().values()) + 1


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes after an assistant's answer; None where there is none."""
    if not tokenizer.chat_template:
        return None
    answer = "answer"
    conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception:  # a template raises what it likes; whoever renders prompts with it says so
        return None
    control = control_ids(tokenizer)
    after = encode(tokenizer, text.rpartition(answer)[2])
    return next((i for i in after if i in control and i != tokenizer.unk_token_id), None)


def closing_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes an answer: what the chat template closes a turn with; without one, EOS."""
    turn_end = turn_end_id(tokenizer)
    closing = tokenizer.eos_token_id if turn_end is None else turn_end
    assert isinstance(closing, int)
    return closing


def context_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that the model of a tokenizer's folder reads at most; None where nothing says.

    What the tokenizer says (``model_max_length``) and the configuration beside it (``max_position_embeddings``): the
    least of them.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < VERY_LARGE_INTEGER else []
    path = Path(str(tokenizer.name_or_path)) / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        positions = config.get("text_config", config).get("max_position_embeddings")
        limits += [positions] if isinstance(positions, int) else []
    return min(limits, default=None)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, model: str) -> tuple[int, ...]:
    """The tokens that end a completion: of the tokenizer, of the chat template and of the model's generation settings.

    Chat models often declare several (``<|im_end|>`` and ``<|endoftext|>``). The first one closes an answer, see
    :func:`closing_id`.

    Args:
        model: folder or Hub id of the checkpoint, with generation_config.json or at least config.json.
    """
    from transformers import GenerationConfig, PretrainedConfig

    try:
        declared = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # it has none
        declared = PretrainedConfig.get_config_dict(model)[0].get("eos_token_id")
    closing = closing_id(tokenizer)
    ids: list[Any] = [tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])]
    return closing, *sorted({i for i in ids if isinstance(i, int)} - {closing})


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Whether what is written so far has a stop string at its end; to be asked after every token.

    The end of a text is decoded, so it holds for every tokenizer, wherever in a token a string begins or ends.
    """

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]

    def __call__(self, ids_BN: torch.Tensor, scores: None) -> torch.Tensor:
        """For token ids of B texts, which of them have one: booleans ``(B,)``."""
        longest = max(len(string.encode()) for string in self.strings) + 4  # a token has a byte at least
        texts = self.tokenizer.batch_decode(ids_BN[:, -longest:].tolist(), skip_special_tokens=False)  # not per token
        return torch.tensor([any(string in text for string in self.strings) for text in texts])


def completion_ids(tokenizer: PreTrainedTokenizerBase, answer: str, *, closing: int | None = None) -> tuple[int, ...]:
    """The token ids of an answer, and the one that closes it: :func:`closing_id`, unless the caller has it already.

    Prompt and answer are tokenised apart and then concatenated: no token spans the border, where sampling starts.
    """
    return (*encode(tokenizer, answer), closing_id(tokenizer) if closing is None else closing)


def completion_text(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """What the policy wrote, as text: the trained tokens, without the one that ended them.

    Of an episode it is all that follows the prompt, what the environment answered too. Any other special token stays
    visible: a verifier that doesn't see it would judge ``1 <pad> 2`` as ``12``.
    """
    if rollout.episode is not None:
        conversation = rollout.token_ids[len(rollout.prompt.token_ids) :].tolist()
        return str(tokenizer.decode(conversation, skip_special_tokens=False))
    written = rollout.token_ids[rollout.loss_mask].tolist()
    if written and rollout.finish == "eos":
        written.pop()
    return str(tokenizer.decode(written, skip_special_tokens=False))


def to_prompt(tokenizer: PreTrainedTokenizerBase, *, domain: str, example: Example) -> Prompt:
    """An example as a prompt of ``domain``, with its token ids."""
    token_ids = encode(tokenizer, example.text, letters=example.letters)
    return Prompt(domain, example.id, token_ids, example.text, example.answer)

"""Models on disk: which folder a name means, and the initial checkpoint of an architecture made from scratch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from mopd.distill.recipe import Architecture, DomainRecipe
from mopd.distill.storage import publish, remove
from mopd.distill.types import UserError
from mopd.recipes.resolve.damage import refuse_damaged
from mopd.rollouts.environments import domain_task
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import build_tokenizer, give_template, read_template, token_count

AGAIN = "remove that folder, and the same command makes it again"
TOKENIZER_TEXTS = 1500
"""Examples of each form of a task that a tokenizer is trained on."""

_RANDOM = threading.Lock()
"""Torch's generator is the process', and the bases of two seeds of a study are made at the same time."""


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; with code that lies in its folder only where that is trusted."""
    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


PLAYED_TEXTS = 32
"""Episodes of an environment that are played for the texts that it answers with, whose tools may be slow; and prompts
of one that starts a program for each."""


def training_texts(tasks: Mapping[str, Task], *, seed: int) -> Iterator[str]:
    """Prompts and answers of every task's training split, both forms: what a tokenizer is trained on."""
    for task in tasks.values():
        for easy in (False, True):
            costly = isinstance(task, EnvironmentTask) and task.costly
            for index in range(PLAYED_TEXTS if costly else TOKENIZER_TEXTS):
                example = task.example(seed=seed, split="train", index=index, easy=easy)
                yield example.text
                yield example.answer
                if isinstance(task, EnvironmentTask) and index < PLAYED_TEXTS:
                    yield from task.texts(seed=seed, index=index, easy=easy)


def trained_tokenizer(architecture: Architecture, tasks: Mapping[str, Task], *, seed: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a model made from scratch that names no other's: trained on the texts of every task.

    Raises:
        UserError: its chat template cannot be read.
    """
    template = read_template(architecture.chat_template)
    return build_tokenizer(training_texts(tasks, seed=seed), architecture.vocabulary, template)


def taken_tokenizer(architecture: Architecture, folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder`` as a model made from scratch takes it, with a chat template of its own if it has one.

    Raises:
        UserError: there is none, it has no EOS, or the template writes tokens that it has not.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # whatever a broken file can be
        raise UserError(f"`tokenizer`: that in {folder} cannot be read ({error!s:.200})") from error
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError(f"`tokenizer`: that in {folder} has no EOS token, which closes every answer; name one there")
    give_template(tokenizer, read_template(architecture.chat_template))
    return tokenizer


def decided_by_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The keys of a configuration that a model's tokenizer decides."""
    return {
        "vocab_size": token_count(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_initial(
    architecture: Architecture,
    folder: Path,
    *,
    domains: Mapping[str, DomainRecipe],
    seed: int,
    run_dir: Path,
    attempt: str,
    tokenizer_of: str | None = None,
) -> None:
    """Write the checkpoint that a model made from scratch starts from: random weights keyed by ``seed``, a tokenizer.

    Does nothing where it is there already.

    Args:
        tokenizer_of: the folder whose tokenizer it takes, where ``architecture`` names one.

    Raises:
        UserError: it is there, and damaged.
    """
    if folder.is_dir():
        refuse_damaged(folder, AGAIN)
        return
    if tokenizer_of is None:
        tasks = {name: domain_task(domain.task, domain=name, tokenizer=None) for name, domain in domains.items()}
        tokenizer = trained_tokenizer(architecture, tasks, seed=seed)
    else:
        tokenizer = taken_tokenizer(architecture, tokenizer_of)
    config = AutoConfig.for_model(architecture.architecture, **architecture.config, **decided_by_tokenizer(tokenizer))
    from transformers import AutoModelForCausalLM  # seconds that a check, which makes no model, does not spend

    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    temporary = folder.with_name(f"{folder.name}.tmp-{attempt}")
    remove(temporary)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    publish(run_dir, attempt, temporary, folder)

"""Models on disk: which folder a name means, and the initial checkpoint of an architecture made from scratch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mopd.distill.recipe import Architecture, DomainRecipe
from mopd.distill.storage import publish, remove
from mopd.recipes.resolve.damage import refuse_damaged
from mopd.rollouts.environments import domain_task
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import build_tokenizer

AGAIN = "remove that folder, and the same command makes it again"
TOKENIZER_TEXTS = 1500
"""Examples of each form of a task that a tokenizer is trained on."""

_RANDOM = threading.Lock()
"""Torch's generator is the process', and the bases of two seeds of a study are made at the same time."""


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; with code that lies in its folder only where that is trusted."""
    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


PLAYED_TEXTS = 32
"""Episodes of an environment that are played for the texts that it answers with; their tools may be slow."""


def training_texts(tasks: Mapping[str, Task], *, seed: int) -> Iterator[str]:
    """Prompts and answers of every task's training split, both forms: what a tokenizer is trained on."""
    for task in tasks.values():
        for easy in (False, True):
            for index in range(TOKENIZER_TEXTS):
                example = task.example(seed=seed, split="train", index=index, easy=easy)
                yield example.text
                yield example.answer
                if isinstance(task, EnvironmentTask) and index < PLAYED_TEXTS:
                    yield from task.texts(seed=seed, index=index, easy=easy)


def make_initial(
    architecture: Architecture,
    folder: Path,
    *,
    domains: Mapping[str, DomainRecipe],
    seed: int,
    run_dir: Path,
    attempt: str,
) -> None:
    """Write the checkpoint that a model made from scratch starts from: random weights keyed by ``seed``, a tokenizer.

    Does nothing where it is there already.

    Raises:
        UserError: it is there, and damaged.
    """
    if folder.is_dir():
        refuse_damaged(folder, AGAIN)
        return
    tasks = {name: domain_task(domain.task, domain=name, tokenizer=None) for name, domain in domains.items()}
    tokenizer = build_tokenizer(training_texts(tasks, seed=seed), architecture.vocabulary)
    config = AutoConfig.for_model(
        architecture.architecture,
        **architecture.config,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    temporary = folder.with_name(f"{folder.name}.tmp-{attempt}")
    remove(temporary)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    publish(run_dir, attempt, temporary, folder)

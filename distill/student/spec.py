"""What the driver tells its ranks: the student they are ranks of, and their part of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mopd.distill.models.heads import HeadSource
from mopd.distill.recipe import Engine, LoRA, Loss, MTPRecipe, Optimizer, StaleRecipe
from mopd.distill.types import ScoredRollout


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """All that a rank needs to know, the same on every rank.

    Attributes:
        model: folder of a Hugging Face checkpoint.
        domains: the trained domains in the recipe's order.
        run_dir: the run's folder; checkpoints lie in its ``checkpoints/``.
        attempt: id of the attempt that owns the folder; see :func:`distill.storage.claim`.
        gpus: part of a GPU that each rank takes of its node; 0 on a CPU.
        end_token_ids: what ends a completion; the exported generation config names them.
        vocabulary: how many ids the tokenizer has; the student's distribution is over these alone. None: over its head.
        heads: output heads of teachers that ship hidden states, held on every rank.
        mtp: its draft heads.
        heads_alone: the model itself stays as it is; only its draft heads learn.
        trust_remote_code: whether Python code that lies in the folder of ``model`` may run.
        lora: the adapter that is trained, where the weights of ``model`` stay as they are.
        stale: what of rollouts is left out of an update that the student has moved away from; None: nothing.
        base: what an exported adapter names as its base: a Hub id, or a folder; empty: ``model``.
    """

    model: str
    engine: Engine
    optimizer: Optimizer
    loss: Loss
    temperature: float
    domains: tuple[str, ...]
    seed: int
    device: Literal["cpu", "cuda"]
    run_dir: str
    attempt: str
    keep_checkpoints: int
    gpus: float = 0.0
    end_token_ids: tuple[int, ...] = ()
    vocabulary: int | None = None
    heads: tuple[HeadSource, ...] = ()
    trust_remote_code: bool = False
    mtp: MTPRecipe = field(default_factory=MTPRecipe)
    heads_alone: bool = False
    lora: LoRA | None = None
    stale: StaleRecipe | None = None
    base: str = ""


@dataclass(frozen=True, slots=True)
class RankUpdate:
    """One rank's part of one optimizer step.

    Attributes:
        step: of the loop, from 0.
        number: of the optimizer step in the run, from 0.
        total: optimizer steps of the whole run, as far as is known now: for the learning rate's schedule.
        token_weight: by domain, ``g_d / N_d``.
        microbatches: of rollouts; as many on every rank, an empty one is a dummy.
        reward_advantages: in the shape of ``microbatches``, or None where the loss uses no reward.
    """

    step: int
    number: int
    total: int
    token_weight: dict[str, float]
    microbatches: tuple[tuple[ScoredRollout, ...], ...]
    reward_advantages: tuple[tuple[float, ...], ...] | None

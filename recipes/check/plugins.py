"""Checks of a user's own task, loss and engine: do they keep the promises that the shipped ones are tested for?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch

from mopd.distill.loss.base import TokenLoss
from mopd.distill.loss.microbatch import Microbatch, collate
from mopd.distill.loss.registry import BoundLoss, bind
from mopd.distill.payload_rows import AskedSupport, payload_spec
from mopd.distill.recipe import EvaluateRecipe, Loss, RolloutRecipe
from mopd.distill.recipe.plugins import is_plugin, own_code
from mopd.distill.types import PayloadName, Prompt, Rollout, ScoredRollout, TeacherScore, UserError
from mopd.rollouts.engines import engine_of
from mopd.rollouts.sampler import asks_more
from mopd.rollouts.tasks import Example, Task, TaskSplit

DRAWN = 32
"""Problems of each split and form that are drawn."""
HOSTILE = ("", "\x00", "0" * 5000, "\N{SNOWMAN}", "None")
"""Texts that a model may write and no task expects."""


def check_own_task(task: Task, *, seed: int) -> Iterator[str]:
    """Whether its problems are whole, repeatable and in one split each, and its verifier takes any text.

    That gold answers are accepted and wrong ones refused is asked of every task, in recipes/check/tasks.py.
    """
    seen: dict[str, str] = {}
    named: dict[tuple[str, str], str] = {}
    for split in get_args(TaskSplit):
        for easy in (False, True):
            for index in range(DRAWN):
                asked: dict[str, Any] = {"seed": seed, "split": split, "index": index, "easy": easy}
                shown = ", ".join(f"{key}={value!r}" for key, value in asked.items())
                try:
                    example, again = task.example(**asked), task.example(**asked)
                except UserError:
                    raise
                except Exception as error:
                    yield f"example({shown}) raises {type(error).__name__}: {error}"
                    return
                if problem := _whole(example, again, seen.setdefault(_text(example), split), split):
                    yield f"example({shown}) {problem}"
                    return
                if (first := named.setdefault((split, example.id), example.text)) != example.text:
                    yield (
                        f"example({shown}) has the id {example.id!r}, and so has {first!r} of this split; answers are "
                        "kept by id, so two problems need two"
                    )
                    return
    yield from _verifier(task, task.example(seed=seed, split="train", index=0))


def _text(example: Example) -> str:
    return str(getattr(example, "text", example))


def _whole(example: Example, again: Example, first_split: str, split: str) -> str | None:
    if not isinstance(example, Example):
        return f"is {type(example).__name__} {str(example)[:60]!r}, and must be a mopd.rollouts.tasks.base.Example"
    if not all(isinstance(part, str) and part for part in (example.id, example.text, example.answer)):
        return f"is {example}: id, text and answer must be texts that are not empty"
    if example != again:
        return f"gives {example.text!r}, then {again.text!r}: it must depend on nothing but what it is asked"
    if first_split != split:
        return (
            f"is {example.text!r}, which is in split {first_split!r} too: what is trained on may not be measured; "
            f"draw through mopd.rollouts.tasks.base.draw_in_split"
        )
    return None


def _verifier(task: Task, example: Example) -> Iterator[str]:
    prompt = Prompt("any", example.id, (0,), example.text, example.answer)
    for text in (*HOSTILE, example.answer):
        try:
            score, many = task.verify(prompt, text), task.verify_many([prompt, prompt], [text, text])
        except UserError:
            raise
        except Exception as error:
            yield f"the verifier raises {type(error).__name__}: {error} on the answer {text[:20]!r}; it may never raise"
            return
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            yield f"the verifier gives {score!r} for the answer {text[:20]!r}; it must give a number from 0 to 1"
            return
        if list(many) != [score, score]:
            yield f"verify gives {score!r} for the answer {text[:20]!r}, verify_many {many!r}; they must agree"
            return
    try:
        wrong = task.wrong_answer(example)
    except UserError:
        raise
    except Exception as error:
        yield f"wrong_answer raises {type(error).__name__}: {error}"
        return
    if not isinstance(wrong, str):
        yield f"wrong_answer gives {wrong!r}; it must be a text"


# ---- a loss

VOCABULARY = 7
CALL_SECONDS = 60.0
"""That a user's own loss may take for twelve tokens."""


class _Watched(Mapping[str, float]):
    """Settings that remember which of them were read."""

    def __init__(self, settings: Mapping[str, float]) -> None:
        self.settings, self.read = settings, set[str]()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return self.settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


def check_own_loss(loss: Loss, *, judged: bool = False) -> Iterator[str]:
    """Whether a user's own estimator keeps its promises; of shipped ones nothing is asked.

    It gives a finite number and gradient for each trained token, reads none but those, and all its settings. Asked of
    random logits with NaN where no token is trained, which a model may have there.

    Args:
        judged: whether what is stale is left out, which is judged by the statistic ``ratio``; see `run.stale`.
    """
    where = f"`loss.estimator`: {loss.estimator}"
    try:
        bound = bind(loss)
    except UserError as error:
        yield from error.problems
        return
    if not bound.custom:
        return
    settings = _Watched(bound.arguments)
    try:
        with own_code(f"{where} has a payload that cannot be made", seconds=CALL_SECONDS):
            microbatch = _probe(bound.payload, needs_each_teacher=bound.spec.needs_each_teacher)
    except UserError as error:
        yield from error.problems
        return
    mask_BT = microbatch.mask_BT
    logits_BTV = torch.randn(*mask_BT.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits_BTV = logits_BTV.masked_fill(~mask_BT.unsqueeze(-1), float("nan")).requires_grad_()
    try:
        with own_code(f"{where}, asked for the loss of a few tokens", seconds=CALL_SECONDS):
            token_loss = replace(bound, arguments=settings).token_loss(logits_BTV, microbatch)
    except UserError as error:
        yield from error.problems
        return
    if not isinstance(token_loss, TokenLoss):
        yield f"{where} gives {type(token_loss).__name__}, and must give a mopd.distill.loss.base.TokenLoss"
        return
    shapes = {"loss_BT": tuple(token_loss.loss_BT.shape)} | {
        f"stats[{n!r}]": tuple(t.shape) for n, t in token_loss.stats.items()
    }
    if wrong := {name: shape for name, shape in shapes.items() if shape != tuple(mask_BT.shape)}:
        yield f"{where} gives shapes {wrong}, and must give one value a token, {tuple(mask_BT.shape)}"
        return
    if judged and "ratio" not in token_loss.stats:
        yield (
            f"{where} gives no stats['ratio'], the policy's probability of what was drawn over the sampler's, by which "
            "`run.stale` is judged; give it, or remove `run.stale`"
        )
    yield from (f"{where} {problem}" for problem in _gradient(token_loss, logits_BTV, mask_BT))
    for name in settings:
        if name not in settings.read:
            yield f"`loss.settings.{name}` is set and would change nothing (it is never read); remove it"


def _gradient(token_loss: TokenLoss, logits_BTV: torch.Tensor, mask_BT: torch.Tensor) -> Iterator[str]:
    if not token_loss.loss_BT.requires_grad:
        yield "gives a loss without a gradient"
        return
    (gradient_BTV,) = torch.autograd.grad(token_loss.loss_BT.sum(), logits_BTV, allow_unused=True)
    if gradient_BTV is None or not gradient_BTV[mask_BT].any():
        yield "gives a loss whose gradient is zero"
    elif not token_loss.loss_BT.isfinite().all() or not gradient_BTV.isfinite().all():
        yield "gives NaN or infinity, maybe from tokens that are not trained: take logits_BTV[microbatch.mask_BT] alone"
    elif token_loss.loss_BT[~mask_BT].any() or gradient_BTV[~mask_BT].any():
        yield "has a loss or a gradient at tokens that are not trained; mopd.distill.loss.base.spread puts zeros there"
    for name, values_BT in token_loss.stats.items():
        if values_BT.requires_grad:
            yield f"gives stats[{name!r}] with a gradient; detach it"


def _probe(payload: PayloadName | None, *, needs_each_teacher: bool) -> Microbatch:
    """Two rollouts of five and seven tokens, each graded by one teacher."""
    random = np.random.default_rng(0)
    rollouts = []
    for index, length in enumerate((5, 7)):
        logits_TV = random.normal(size=(length, VOCABULARY))
        logprobs_TV = (logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))).astype(np.float32)
        tokens_T = random.integers(0, VOCABULARY, length).astype(np.int32)
        rollout = Rollout(
            prompt=Prompt("probe", f"probe/{index}", tuple(tokens_T[:2].tolist()), "", ""),  # not per token
            token_ids=tokens_T,
            loss_mask=np.arange(length) >= 2,
            sampler_logprobs=np.full(length, -2.0, dtype=np.float32),
            finish="eos",
            version=(0, 0),
            group=index,
            index=index,
        )
        scores: tuple[tuple[float, TeacherScore], ...] = ()
        if payload is not None:
            of_logprobs = payload_spec(payload).of_logprobs
            assert of_logprobs is not None, "bind refuses an own loss whose payload nothing makes"
            ids_T = torch.from_numpy(tokens_T.astype(np.int64))
            scores = ((1.0, TeacherScore("probe", of_logprobs(torch.from_numpy(logprobs_TV), ids_T, AskedSupport()))),)
        rollouts.append(ScoredRollout(rollout, scores))
    return collate(
        rollouts, token_weight={"probe": 1.0}, domains=("probe",), pad_id=0, payload=payload,
        reward_advantages=None, device="cpu", needs_each_teacher=needs_each_teacher,
    )  # fmt: skip


def check_engine(
    rollout: RolloutRecipe, loss: BoundLoss, evaluate: EvaluateRecipe, *, elsewhere: bool = False
) -> Iterator[str]:
    """Whether the engine of rollouts is there and can do what the recipe asks of it, each problem a sentence.

    Args:
        elsewhere: it is to run on another machine, and what this one lacks does not matter.
    """
    try:
        engine = engine_of(rollout.engine, workers=rollout.workers)
    except UserError as error:
        yield from error.problems
        return
    if engine.lacking is not None and not elsewhere:
        yield from engine.lacking(rollout)
    if is_plugin(rollout.engine) and rollout.workers and not engine.needs_workers:
        yield f"`rollout.workers` is set and would change nothing ({rollout.engine} decides where it writes); remove it"
    if engine.needs_workers and not rollout.workers:
        yield (
            f"`rollout.engine` is {rollout.engine}, which writes in processes beside the student's ranks, and "
            "`rollout.workers` is 0; set how many are started"
        )
    if loss.support is not None and loss.support.given and not engine.records_support:
        yield (
            f"`rollout.engine` {rollout.engine} does not record the student's likeliest tokens, which `loss.support` "
            f"{loss.support.whose} asks its teachers about; take `support: teacher`"
        )
    if asks_more(evaluate) and not engine.examines:
        yield (
            f"`rollout.engine` {rollout.engine} does not say that it writes answers of evaluations otherwise "
            "(`examines`), which `evaluate.samples_per_prompt` or `evaluate.stop_strings` asks for; remove them"
        )


def engine_warnings(rollout: RolloutRecipe) -> Iterator[str]:
    """What a run gives up with its engine, each a sentence; the engine is there."""
    if not engine_of(rollout.engine, workers=rollout.workers).keyed:
        yield (
            f"`rollout.engine` {rollout.engine} is not `keyed`: a run that was interrupted and resumed writes other "
            f"rollouts than one that was not, and two runs of one seed differ"
        )

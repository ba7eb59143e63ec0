"""The student on the driver: plans each step's updates and tells the ranks what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mopd.distill import storage
from mopd.distill.loss.registry import bind
from mopd.distill.loss.sampled import group_advantages
from mopd.distill.loss.shares import SHARE_RULES, normalised, step_tokens
from mopd.distill.student import checkpoint
from mopd.distill.student.plan import UpdatePlan, plan_updates
from mopd.distill.student.spec import RankUpdate, StudentSpec
from mopd.distill.types import Metrics, RunError, ScoredRollout, UserError


class Ranks(Protocol):
    """The processes of a student's ranks, wherever they are."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def call(self, method: str, per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a method of ``StudentRank`` on all ranks at the same time; returns the results by rank.

        Raises:
            RunError: a rank died (it is named), or raised it.
        """
        ...


class LiveWeights:
    """The weights that the ranks hold; satisfies :class:`distill.types.Weights`."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    @property
    def ranks(self) -> int:
        """How many ranks ``on_ranks`` reaches."""
        return self._ranks.size

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``fn(module, *per_rank[r])`` on every rank ``r`` with its live module; returns the results by rank."""
        return self._ranks.call("call", [(fn, args) for args in per_rank])

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The consolidated weights under Hugging Face names, on the CPU; an adapter is added in."""
        return self._ranks.call("state_dict", [()] * self._ranks.size)[0]

    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """The weights of the adapter alone, by peft's names, on the CPU, where one is trained."""
        return self._ranks.call("adapter_state", [()] * self._ranks.size)[0]


class DeepSpeedStudent:
    """A student trained by DeepSpeed; satisfies :class:`distill.types.Student`.

    Args:
        selective: its grader selects what is learnt from; see :func:`distill.student.plan.plan_updates`.
    """

    def __init__(
        self,
        ranks: Ranks,
        spec: StudentSpec,
        *,
        shares: Mapping[str, float],
        steps: Callable[[], int],
        updates_per_step: int,
        share_rule: str,
        keep_steps: Callable[[], Collection[int]] = tuple,
        selective: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        """``steps``: those of the whole run, as far as is known, asked at each update; ``keep_steps``: those whose
        checkpoints are not to be removed, asked at each saving; ``say``: to people."""
        self._ranks = ranks
        self._spec = spec
        self._loss = bind(spec.loss)
        self._shares = dict(shares)
        self._steps = steps
        self._share_rule = share_rule
        self._keep_steps = keep_steps
        self._say = say
        self._updates_per_step = updates_per_step
        self._selective = selective

    def load_latest(self) -> int:
        """Restore the newest whole checkpoint, if any; returns the number of finished steps (0 if there is none).

        Those that are damaged are named, and get other names once an older one has been restored.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._checkpoints()):
            problems = self._damage(step)
            if problems:
                damaged[step] = "; ".join(problems)
                continue
            if not storage.is_sealed(self._folder / checkpoint.checkpoint_name(step)):
                self._say(f"{checkpoint.checkpoint_name(step)} has no digests (an earlier version): not verified")
            self._all("load", step)
            for bad, what in damaged.items():
                aside = checkpoint.checkpoint_name(bad)
                path = storage.set_aside(self._spec.run_dir, self._spec.attempt, self._folder / aside)
                self._say(
                    f"checkpoint {aside} is damaged: {what}; going on from step {step}, and it is now {path.name}"
                )
            return step
        if damaged:
            raise UserError(
                *(f"checkpoint {self._folder / checkpoint.checkpoint_name(s)}: {what}" for s, what in damaged.items()),
                f"no whole checkpoint is left in {self._folder}; put one back, or remove that folder and the same "
                "command begins again at step 0",
            )
        return 0

    def weights(self) -> LiveWeights:
        """The weights of now."""
        return LiveWeights(self._ranks)

    def update(self, batch: Sequence[ScoredRollout], *, step: int) -> Metrics:
        """Take ``updates_per_step`` optimizer steps on ``batch``; returns metrics averaged over them, none of none.

        ``share/d`` is each domain's part of the loss in this step, the same in all of its updates.

        Raises:
            NonFinite: loss or gradient is NaN or infinite; raised before the weights move.
        """
        rewards = self._reward_advantages(batch)
        shares = self._shares_of(batch, rewards)
        plans = plan_updates(
            batch,
            shares=shares,
            updates=self._updates_per_step,
            ranks=self._ranks.size,
            microbatch_tokens=self._spec.engine.microbatch_tokens,
            selective=self._selective,
            packing=self._spec.engine.packing,
        )
        if not plans:
            return {}
        first, total = step * self._updates_per_step, self._steps() * self._updates_per_step
        per_rank = [
            tuple(
                _rank_update(plan, batch, rewards, rank=rank, step=step, number=first + i, total=total)
                for i, plan in enumerate(plans)
            )
            for rank in range(self._ranks.size)
        ]
        metrics: Metrics = self._ranks.call("update", [(updates,) for updates in per_rank])[0]
        return metrics | {f"share/{domain}": share for domain, share in normalised(shares).items()}

    def worked(self) -> list[float]:
        """Seconds that each rank computed since the last call; see :mod:`distill.student.work`."""
        return self._all("worked")

    def save(self, step: int, beside: Mapping[str, bytes] | None = None) -> None:
        """Write a checkpoint from which a run resumes exactly after ``step`` finished steps, unless it is there; with
        files ``beside`` it by their names."""
        if step not in self._checkpoints():
            self._all("save", step, tuple(self._keep_steps()), beside)

    def beside(self, step: int, name: str) -> bytes | None:
        """A file that :meth:`save` wrote with a checkpoint; None where it wrote none of that name."""
        path = self._folder / checkpoint.checkpoint_name(step) / name
        return path.read_bytes() if path.is_file() else None

    def load(self, step: int) -> None:
        """Go back to the weights after ``step`` finished steps.

        Raises:
            RunError: their checkpoint is gone, or damaged.
        """
        there = step in self._checkpoints()
        problems = self._damage(step) if there else ()
        if problems or not there:
            what = f"damaged ({'; '.join(problems)})" if there else "not there"
            raise RunError(
                f"the checkpoint of step {step} in {self._folder}, which `evaluate.select` chose, is {what}; put it "
                f"back, start from scratch with --restart, or with `evaluate.select=last` and another --out"
            )
        self._all("load", step)

    def export(self, path: str, beside: Mapping[str, bytes] | None = None) -> None:
        """Write a Hugging Face checkpoint with its tokenizer and, by name, files that go with it; an adapter is added
        in, and lies in a folder beside it."""
        self._all("export", path, beside)

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._ranks.call(method, [args] * self._ranks.size)

    @property
    def _folder(self) -> Path:
        return Path(self._spec.run_dir) / "checkpoints"

    def _checkpoints(self) -> list[int]:
        return checkpoint.whole_checkpoints(self._folder)

    def _damage(self, step: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(problem for problems in self._all("damage", step) for problem in problems))

    def _shares_of(self, batch: Sequence[ScoredRollout], rewards: Sequence[float] | None) -> dict[str, float]:
        tokens = {} if self._share_rule == "explicit" else step_tokens(batch, self._loss, rewards)
        return SHARE_RULES[self._share_rule](self._shares, tokens)

    def _reward_advantages(self, batch: Sequence[ScoredRollout]) -> list[float] | None:
        if self._loss.reward_weight == 0:
            return None
        return group_advantages([s.reward for s in batch], [s.rollout.group for s in batch])


def _rank_update(
    plan: UpdatePlan,
    batch: Sequence[ScoredRollout],
    rewards: Sequence[float] | None,
    *,
    rank: int,
    step: int,
    number: int,
    total: int,
) -> RankUpdate:
    positions = plan.microbatches[rank]
    return RankUpdate(
        step=step,
        number=number,
        total=total,
        token_weight=plan.token_weight,
        microbatches=tuple(tuple(batch[i] for i in microbatch) for microbatch in positions),
        reward_advantages=None
        if rewards is None
        else tuple(tuple(rewards[i] for i in microbatch) for microbatch in positions),
    )

"""What one optimizer step did, by domain: sums over microbatches and ranks, then the metrics made from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from mopd.distill.loss.base import TokenLoss
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.types import Metrics

_ROWS = (
    "tokens",
    "taught",
    "loss",
    "non_finite",
    "abs_advantage",
    "gradient",
    "kl",
    "entropy",
    "ratio",
    "gate_dropped",
    "clipped",
    "stale",
)
_MEANS = ("kl", "entropy", "ratio", "gate_dropped", "clipped", "stale")
"""Statistics of a loss that are reported as means over the tokens of a domain."""


class UpdateTotals:
    """Sums by domain over an optimizer step; one all-reduce, before the weights move.

    Metrics, with ``d`` a domain (a share is a part of the sum over all domains):
        loss: the weighted loss, ``sum_d g_d * (token mean in d)``.
        entropy/d, ratio/d, gate_dropped/d, clipped/d: means over the trained tokens, where the loss has them.
        stale/d: the part of the trained tokens that was left out as stale; only with a rule for them.
        kl/d: mean over the trained tokens that a teacher graded; absent where none did.
        token_share/d: of the trained tokens.
        advantage_share/d: of ``sum_t |A_t|``.
        gradient_share/d: of ``sum_t || dL / d z_t ||``, the norm of the loss' gradient at the logits ``z_t`` of each
            token, weights included. The norm of a domain's gradient at the parameters would take a backward for each.
    """

    def __init__(self, domains: Sequence[str], device: torch.device | str) -> None:
        self._domains = tuple(domains)
        self._sums = torch.zeros(len(_ROWS), len(domains), dtype=torch.float64, device=device)
        self._seen: frozenset[str] = frozenset()

    def add(self, microbatch: Microbatch, token_loss: TokenLoss) -> None:
        """Add a microbatch's tokens. A loss that is not finite is counted, and its value left out."""
        mask_BT = microbatch.mask_BT
        loss_BT = token_loss.loss_BT.detach()
        finite_BT = loss_BT.isfinite()
        stats = token_loss.stats
        self._seen |= stats.keys()
        columns = {
            "tokens": mask_BT,
            "taught": mask_BT & microbatch.has_teacher_B.unsqueeze(1),
            "loss": (loss_BT * microbatch.weights_BT).masked_fill(~finite_BT, 0.0),
            "non_finite": ~finite_BT,
            **{name: stats[name] for name in _MEANS if name in stats},
        }
        if "advantage" in stats:
            columns["abs_advantage"] = stats["advantage"].abs()
        rows = torch.stack([columns[name].sum(dim=1, dtype=torch.float64) for name in columns])
        index = torch.tensor([_ROWS.index(name) for name in columns], device=rows.device)
        by_domain = torch.zeros(len(columns), len(self._domains), dtype=torch.float64, device=rows.device)
        by_domain.index_add_(1, microbatch.domain_B, rows)
        self._sums.index_add_(0, index, by_domain)

    def watch_gradient(self, logits_BTV: torch.Tensor, microbatch: Microbatch) -> None:
        """Add the norms of the gradient at ``logits_BTV`` when the backward passes there, if it does."""

        if logits_BTV.requires_grad:
            logits_BTV.register_hook(lambda gradient_BTV: self.add_gradient(gradient_BTV.norm(dim=-1), microbatch))

    def add_gradient(self, norms_BT: torch.Tensor, microbatch: Microbatch) -> None:
        """Add the norms of the gradient at each token's logits."""
        norms_B = norms_BT.sum(dim=1, dtype=torch.float64)
        self._sums[_ROWS.index("gradient")].index_add_(0, microbatch.domain_B, norms_B)

    def all_reduce(self, counts_LE: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks; ``counts_LE`` travels along (one collective in place of two) and comes back summed."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return counts_LE.clone()
        packed = torch.cat([self._sums.reshape(-1), counts_LE.reshape(-1).to(self._sums)])
        dist.all_reduce(packed)
        self._sums = packed[: self._sums.numel()].view_as(self._sums)
        return packed[self._sums.numel() :].view_as(counts_LE).clone()

    def non_finite_domains(self) -> list[str]:
        """Domains with a token whose loss is NaN or infinite."""
        return [d for d, count in zip(self._domains, self._row("non_finite"), strict=True) if count > 0]

    def metrics(self) -> Metrics:
        """The metrics of the class' docstring."""
        tokens = self._row("tokens")
        metrics = {"loss": sum(self._row("loss"))}
        for name in _MEANS:
            if name in self._seen:
                counted = self._row("taught") if name == "kl" else tokens
                sums = zip(self._domains, self._row(name), counted, strict=True)
                metrics |= {f"{name}/{d}": total / max(1.0, n) for d, total, n in sums if n or name != "kl"}
        shares = {"token_share": tokens, "gradient_share": self._row("gradient")}
        if "advantage" in self._seen:
            shares["advantage_share"] = self._row("abs_advantage")
        for name, row in shares.items():
            total = sum(row) or 1.0
            metrics |= {f"{name}/{d}": part / total for d, part in zip(self._domains, row, strict=True)}
        return metrics

    def _row(self, name: str) -> list[float]:
        return self._sums[_ROWS.index(name)].tolist()

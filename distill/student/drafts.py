"""Trains the student's draft heads beside it: on the forward that its update takes anyway, with an optimizer apart.

What the heads are fed is detached, and neither their gradient nor their norm enters DeepSpeed: the student moves as it
would without them, bit by bit.

Shape legend: B sequences, T tokens of a sequence, H hidden size, N graded guesses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mopd.distill.loss.drafts import draft_loss
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.models.heads import plain_head
from mopd.distill.models.mtp import attach, make_heads
from mopd.distill.models.packing import ModelRows
from mopd.distill.recipe import MTPRecipe
from mopd.distill.types import Metrics, align_logits

FILE = "draft_heads.pt"
"""In a checkpoint: the heads' weights and their optimizer."""
BETAS = (0.9, 0.98)
CLIP = 1.0


class DraftTrainer:
    """The draft heads of one rank's student; every rank holds them whole, and all move alike.

    Args:
        model: the student, which they are attached to.
        path: its checkpoint, which may hold heads.
        seed: of new ones.

    Raises:
        UserError: the student cannot have them; see :func:`distill.models.mtp.make_heads`.
    """

    def __init__(
        self, model: Any, path: str, settings: MTPRecipe, *, domains: tuple[str, ...], temperature: float,
        vocabulary: int | None, seed: int, device: torch.device | str,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.heads = make_heads(path, model, settings.heads, seed=seed).to(device).eval()
        attach(model, self.heads)
        self._head = plain_head(model)
        self._domains = domains
        self._temperature, self._vocabulary = temperature, vocabulary
        self._device = device
        # Small steps would be lost in bfloat16 weights.
        self._masters = [p.detach().float().clone().requires_grad_() for p in self.heads.parameters()]
        self._optimizer = torch.optim.AdamW(self._masters, lr=settings.lr, betas=BETAS, weight_decay=0.0)
        self._hidden: Tensor | None = None
        self._sums = self._zeros()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what goes into the student's output head in the block: its last hidden states."""

        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            self._hidden = inputs[0].detach()

        handle = self._head.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def learn(self, microbatch: Microbatch, given: ModelRows, indices: tuple[int, ...], *, step: int) -> None:
        """Add the gradient of the microbatch whose forward was watched last. The heads see its sequences padded.

        Args:
            given: the microbatch's sequences as the student was given them.
            indices: the rollouts' numbers in the step, in the microbatch's order; none of a dummy.
            step: of the loop.
        """
        hidden, self._hidden = self._hidden, None
        rows = [row for row, index in enumerate(indices) if self.takes(index, step)]
        if not rows or hidden is None:
            return
        length = int(microbatch.attention_mask_BT[rows].sum(1).max())
        hidden_BTH, ids_BT = given.padded(hidden)[rows, :length], microbatch.token_ids_BT[rows, :length]
        weights_BT = microbatch.weights_BT[rows, :length]
        own_BTH = align_logits(hidden_BTH)  # row t: what the distribution of token t is made of
        depth = self.settings.depth
        first = self.heads.unroll(hidden_BTH, ids_BT, depth)
        further = self.heads.chain(first[0], ids_BT)
        # Row p of a guess speaks of token p + ahead: of the recurrent layer, with its depth, and of a chain's layers.
        guesses = [(k + 2, k, g_BTH) for k, g_BTH in enumerate(first)]
        guesses += [(k + 3, None, g_BTH) for k, g_BTH in enumerate(further)]
        loss = torch.zeros((), device=hidden_BTH.device)
        domain_B = microbatch.domain_B[rows]
        for ahead, row, guess_BTH in guesses:
            weight_BT, guess_BTH = weights_BT[:, ahead:], guess_BTH[:, : max(0, length - ahead)]  # not per token
            mask_BT = weight_BT > 0
            if not mask_BT.any():
                continue
            kl_N, overlap_N = draft_loss(
                own_BTH[:, ahead:][mask_BT], guess_BTH[mask_BT], self.heads.logits,
                temperature=self._temperature, vocabulary=self._vocabulary,
            )  # fmt: skip
            weight_N = weight_BT[mask_BT]
            loss = loss + (kl_N * weight_N).sum()
            self._sums[0, 0, 0] += weight_N.sum()
            if row is not None:
                domain_N = domain_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]
                for k, values_N in enumerate((torch.ones_like(kl_N), kl_N.detach(), overlap_N)):
                    self._sums[1 + row, k].index_add_(0, domain_N, values_N.double())
        if loss.requires_grad:
            loss.backward()

    def takes(self, index: int, step: int) -> bool:
        """Whether a rollout is learnt from: every 1/share-th of a step, and others in the next."""
        place, share = index + step, self.settings.share
        return int((place + 1) * share) > int(place * share)

    def gather(self) -> bool:
        """Sum gradients and statistics over all ranks; returns whether all of it is finite."""
        gradients = [
            torch.zeros_like(master) if p.grad is None else p.grad.float()
            for master, p in zip(self._masters, self.heads.parameters(), strict=True)
        ]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
            dist.all_reduce(self._sums)
        flat /= float(self._sums[0, 0, 0]) or 1.0
        parts = flat.split([master.numel() for master in self._masters])
        for master, p, part in zip(self._masters, self.heads.parameters(), parts, strict=True):
            master.grad, p.grad = part.view_as(master), None
        return bool(flat.isfinite().all())

    def step(self, lr: float) -> Metrics:
        """Move the heads by what :meth:`gather` summed; returns how well they guess.

        Metrics, with j a depth from 1 and d a domain: ``draft_kl/d``, nats a guess, over all depths; and
        ``draft_overlap_j/d``, the part of guesses at depth j that a sampler can accept where it did those before.
        """
        metrics = {"draft_grad_norm": float(torch.nn.utils.clip_grad_norm_(self._masters, CLIP)), "draft_lr": lr}
        if float(self._sums[0, 0, 0]) > 0:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self._publish()
        for place, domain in enumerate(self._domains):
            n_J, kl_J, overlap_J = self._sums[1:, :, place].T.tolist()  # not per token
            if sum(n_J):
                metrics[f"draft_kl/{domain}"] = sum(kl_J) / sum(n_J)
            for j, (n, overlap) in enumerate(zip(n_J, overlap_J, strict=True), start=1):
                if n:
                    metrics[f"draft_overlap_{j}/{domain}"] = overlap / n
        self._sums = self._zeros()
        return metrics

    def drop(self) -> None:
        """Forget gradients and statistics of a step that is not taken."""
        self.heads.zero_grad(set_to_none=True)
        self._sums = self._zeros()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer into a checkpoint's folder."""
        state = {
            "masters": self._masters,
            "buffers": dict(self.heads.named_buffers()),
            "adamw": self._optimizer.state_dict(),
        }
        torch.save(state, folder / FILE)

    def load(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote, bitwise."""
        state = torch.load(folder / FILE, map_location=self._device, weights_only=True)
        with torch.no_grad():
            for master, saved in zip(self._masters, state["masters"], strict=True):
                master.copy_(saved)
            for name, buffer in self.heads.named_buffers():
                buffer.copy_(state["buffers"][name])
        self._optimizer.load_state_dict(state["adamw"])
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            for master, p in zip(self._masters, self.heads.parameters(), strict=True):
                p.copy_(master)

    def _zeros(self) -> Tensor:
        """Sums: the weight of all guesses first, then by depth: guesses, divergence, overlap, by domain."""
        return torch.zeros(1 + self.settings.depth, 3, len(self._domains), dtype=torch.float64, device=self._device)

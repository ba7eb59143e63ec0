"""How fast a model could write on a card, from arithmetic alone: bytes to be read and operations to be done a round.

A round gives every row of a batch one token, or with draft heads several. It takes at least the time in which the card
reads the weights that are needed and the rows' caches, and at least the time of its multiplications; the larger of the
two is taken. Launching, communication, sampling and whatever a program does less than perfectly are left out, so these
are bounds that no engine reaches.

Source: the roofline, Williams et al., doi 10.1145/1498765.1498785; decoding is bound by what is read, Pope et al.,
arXiv 2211.05102, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd.distill.models.flops import ModelCost


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An accelerator as its data sheet has it: bytes a second from its memory, dense bfloat16 FLOPs a second."""

    name: str
    bandwidth: float
    flops: float
    memory: float


CARDS = {
    "H100": Accelerator("NVIDIA H100 SXM", 3.35e12, 989e12, 80e9),
    "H200": Accelerator("NVIDIA H200 SXM", 4.8e12, 989e12, 141e9),
    "A100": Accelerator("NVIDIA A100 SXM 80 GB", 2.039e12, 312e12, 80e9),
}
"""Cards by name; figures of NVIDIA's data sheets, without sparsity."""


@dataclass(frozen=True, slots=True)
class WritingCost:
    """What a model is, as far as writing goes.

    Attributes:
        cost: of the model.
        experts, experts_per_token: of a mixture layer; 0 and 0 of a dense model.
        head_parameters: of one draft layer, with the output head that it shares; 0 where it has none.
        weight_bytes: of a weight.
    """

    cost: ModelCost
    experts: int
    experts_per_token: int
    head_parameters: int = 0
    weight_bytes: float = 2.0

    def weights_read(self, tokens: int) -> float:
        """Bytes of the weights that so many tokens pass at once, each sent to experts that are as likely as any.

        Of E experts of which a token takes k, ``E (1 - (1 - k/E)^tokens)`` are expected to be needed.
        """
        total, active = self.cost.total_parameters, self.cost.active_parameters
        if not self.experts or self.experts_per_token >= self.experts:
            return total * self.weight_bytes
        share = self.experts_per_token / self.experts
        routed = (total - active) / (1 - share)
        return (total - routed + routed * (1 - (1 - share) ** tokens)) * self.weight_bytes

    def round_seconds(self, card: Accelerator, cards: int, *, rows: int, context: int, guesses: int = 0) -> float:
        """The least time of a round of ``rows`` sequences that have ``context`` tokens each.

        Args:
            guesses: tokens that draft heads guess for each row, one after the other; the model checks them together.

        Raises:
            ValueError: what the family's cache keeps of a token is not known.
        """
        cached = self.cost.cached_bytes(context)
        if cached is None:
            raise ValueError("what a cache keeps of a token of this family is not known")
        tokens = rows * (guesses + 1)
        read = self.weights_read(tokens) + rows * cached
        done = tokens * float(self.cost.forward([context + 1]) - self.cost.forward([context]))
        bandwidth, flops = card.bandwidth * cards, card.flops * cards
        head_read, head_done = self.head_parameters * self.weight_bytes, 2.0 * rows * self.head_parameters
        return max(read / bandwidth, done / flops) + guesses * max(head_read / bandwidth, head_done / flops)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a batch: tokens a second of one row, of all, and what a million of them cost at the hourly rate of a card."""

    rows: int
    each: float
    together: float
    price: float


def speed(
    writing: WritingCost,
    card: Accelerator,
    cards: int,
    *,
    rows: int,
    context: int,
    hourly: float,
    guesses: int = 0,
    tokens_per_round: float = 1.0,
) -> Speed:
    """How fast a batch is written at most.

    Args:
        hourly: what a card costs an hour.
        tokens_per_round: that a row gets of a round with ``guesses``, the model's own included; measured, not computed.
    """
    each = tokens_per_round / writing.round_seconds(card, cards, rows=rows, context=context, guesses=guesses)
    return Speed(rows, each, each * rows, hourly * cards / 3600 / (each * rows) * 1e6)

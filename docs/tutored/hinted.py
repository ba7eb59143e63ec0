"""The quickstart's problems with their gold answer before the question: what a base must have seen to use a hint.

``3+7=10,2+9+1=12,6+5+1=12;1220, math 623+597=`` -> ``3+7=10,2+9+1=12,6+5+1=12;1220``
"""

from collections.abc import Sequence
from dataclasses import replace

from mopd import Example, Prompt
from mopd.rollouts.tasks.arithmetic import Arithmetic
from mopd.rollouts.tasks.list_programs import ListPrograms
from mopd.rollouts.tasks.ordering import Ordering


class Hinted:
    """A task whose questions come with the gold answer before them; a problem stays in its split."""

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """The problem of the task, with its answer in front."""
        example = super().example(seed=seed, split=split, index=index, easy=easy)
        return replace(example, text=f"{example.answer}, {example.text}")

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """What the task says of an answer to the question alone."""
        return super().verify_many([replace(p, text=p.text.removeprefix(f"{p.answer}, ")) for p in prompts], texts)


class HintedArithmetic(Hinted, Arithmetic):
    """Sums behind their answers."""


class HintedPrograms(Hinted, ListPrograms):
    """Chains of list operations behind their expressions."""


class HintedOrdering(Hinted, Ordering):
    """Orders behind their answers."""

"""What a row of KINDS says of a kind of teacher, and the plain values that its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mopd.distill.endpoint import Endpoint
from mopd.distill.payloads import Support
from mopd.distill.recipe import TeacherRecipe
from mopd.distill.types import PayloadName
from mopd.teachers.scorer import TeacherSource

EVERY_KIND_READS = frozenset({"model", "trust_remote_code", "replicas", "resources", "prompt", "tokenizer"})
"""Keys of a teacher's stanza that mean the same for every kind."""


@dataclass(frozen=True, slots=True)
class TeacherSetup:
    """What a teacher's source is made from. Setups of teachers that may share processes are equal.

    Attributes:
        name: the teacher's.
        folder: of ``model``: its configuration and tokenizer, and its weights where the kind has any.
        device: where it computes: ``"cpu"`` or ``"cuda"``.
        dtype: what it computes in: ``"float32"`` or ``"bfloat16"``.
        adapter: the folder of its LoRA adapter; ``open`` is given it beside those of the teachers that share the base.
        trust_remote_code: whether Python code in ``folder`` may run.
        microbatch_seconds: that it may take to score a microbatch.
        stanza: its section of the recipe, as written.

    Example:
        ``TeacherSetup("math", "/models/math", "cpu", "float32", None, False, 600.0, recipe.teachers["math"])``
    """

    name: str = field(compare=False)
    folder: str
    device: str
    dtype: str
    adapter: str | None = field(compare=False)
    trust_remote_code: bool
    microbatch_seconds: float
    stanza: TeacherRecipe = field(hash=False)


@dataclass(frozen=True, slots=True)
class TeacherUse:
    """A teacher's stanza and what the run will ask of it: what a static check is given.

    Attributes:
        name: the teacher's.
        made_by_run: whether ``model`` is a stage of the run, or the student itself, so that nothing has it yet.
        grades: whether the method asks it for scores; else for its weights.
        estimator: name of the loss.
        payload: what the loss needs; None where it needs nothing of teachers.
        support: whose likeliest tokens the loss compares; None where it has no support.
        temperature: at which it must score.
    """

    name: str
    stanza: TeacherRecipe
    made_by_run: bool
    grades: bool
    estimator: str
    payload: PayloadName | None
    support: Literal["teacher", "student", "union"] | None
    temperature: float


@dataclass(frozen=True, slots=True)
class TeacherReach:
    """What a teacher that lies elsewhere is tried with before the run.

    Attributes:
        name: the teacher's.
        texts: prompts of every domain.
        tokenizer: the student's; None where it is not known.
        support: which tokens the loss compares; None where it has no support.
        longest_prompt, max_new_tokens: in tokens; together they are the longest rollout.
    """

    name: str
    stanza: TeacherRecipe
    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase | None
    support: Support | None
    longest_prompt: int
    max_new_tokens: int


def no_problems(use: TeacherUse) -> Iterable[str]:
    """The check of a kind that asks nothing more of its stanza."""
    return ()


def no_words(stanza: TeacherRecipe) -> str:
    """The description of a kind that is described by its model."""
    return ""


@dataclass(frozen=True, slots=True)
class TeacherKind:
    """A row of :data:`teachers.kinds.KINDS`.

    Attributes:
        name: as a recipe writes it.
        source: makes what a teacher's processes open.
        payloads: what it can answer with; a loss that needs another is refused.
        reads: keys of the stanza that it reads besides :data:`EVERY_KIND_READS`; any other that is set is refused.
        unread: why a key that it does not read would change nothing, by key; ``{endpoint}`` and the like stand for
            the stanza's values.
        has_weights: whether its processes hold weights of ``model``: these are downloaded, take a device, memory and
            turns where not all teachers are resident. Without them a process only asks, on the CPU.
        can_write: whether it answers prompts, so that it is measured on held-out ones. A kind that has weights and can
            write is loaded for that by transformers, writes for ``off_policy`` and is merged.
        packs: whether its processes lay the rollouts of a forward one after another where the conditions say so; else
            they are asked for as many as are padded.
        endpoint: where it writes, by its name and stanza, if it writes and has no weights here.
        check: what is wrong with its stanza, or with what the run asks of it, each a sentence. Nothing is loaded.
        reach: what is wrong where it lies, each a sentence, if it lies elsewhere: asked before the run.
        describe: what scores besides its model, in words that follow on it.
    """

    name: str
    source: Callable[[TeacherSetup], TeacherSource]
    payloads: tuple[PayloadName, ...]
    reads: frozenset[str] = frozenset({"settings"})
    unread: Mapping[str, str] = field(default_factory=dict)
    has_weights: bool = True
    can_write: bool = False
    packs: bool = False
    endpoint: Callable[[str, TeacherRecipe], Endpoint] | None = None
    check: Callable[[TeacherUse], Iterable[str]] = no_problems
    reach: Callable[[TeacherReach], Iterable[str]] | None = None
    describe: Callable[[TeacherRecipe], str] = no_words

    @property
    def takes_adapters(self) -> bool:
        """Whether it may be a LoRA adapter over its model."""
        return "adapter" in self.reads

    def unread_keys(self, stanza: TeacherRecipe) -> dict[str, str]:
        """The keys of a stanza that it does not read, set or not, each with why it would change nothing."""
        values = {key: getattr(stanza, key) for key in type(stanza).model_fields}
        unread = [key for key in values if key not in EVERY_KIND_READS | self.reads | {"kind"}]
        return {
            key: self.unread.get(key, f"a {self.name} teacher reads no such key").format(**values) for key in unread
        }

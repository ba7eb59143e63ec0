"""What names a model: an architecture to make, or where one lies, and its revision on the Hub."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from mopd.distill.recipe.base import FiniteMapping, Strict, refusal
from mopd.distill.recipe.model_names import at_revision, is_hub_id, is_path

CHATML = "chatml"
"""A chat template that is shipped (rollouts/tokenizer.py): `<|im_start|>role ... <|im_end|>`, as Qwen writes turns."""

REVISION = "branch, tag or commit of `{}` on the Hub; none: its main branch. Noted as the commit"


def require_hub_id(source: object, revision: str | None, *, leaf: str, of: str) -> None:
    """Whether a revision stands beside a model of the Hub, and nowhere else."""
    if is_hub_id(source) and "@" in str(source):
        raise refusal(f"has `{of}` {source!r}; write what follows the @ as `{leaf}`")
    if revision is not None and not is_hub_id(source):
        raise refusal(
            f"has `{leaf}` {revision!r}, and `{of}` is no model of the Hub, which has revisions; leave it out"
        )


class Architecture(Strict):
    """A model made from scratch: a transformers configuration, and a tokenizer: one trained here, or another's."""

    architecture: str = Field(description="transformers model type, for example mimo_v2_flash, qwen3_moe, llama")
    config: FiniteMapping = Field(default_factory=dict, description="keys of that model's configuration class")
    vocabulary: int = Field(default=160, ge=40, le=1_000_000, description="size of the byte-pair vocabulary, in tokens")
    tokenizer: str | None = Field(
        default=None,
        description="whose tokenizer it takes: stage:NAME, a path (./ or /) or a Hub id; none: one is trained",
    )
    tokenizer_revision: str | None = Field(default=None, description=REVISION.format("tokenizer"))
    chat_template: str | None = Field(
        default=None,
        description="turns of a chat: chatml, or the path of a Jinja file (begins with ./ or /); none: that of "
        "`tokenizer`, if it has one",
    )

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        require_hub_id(self.tokenizer, self.tokenizer_revision, leaf="tokenizer_revision", of="tokenizer")
        default = type(self).model_fields["vocabulary"].default  # a run's folder has every leaf written out
        if self.tokenizer is not None and self.vocabulary != default:
            raise refusal("has both `tokenizer` and `vocabulary`, which a tokenizer has already; give one of them")
        if self.chat_template is not None and self.chat_template != CHATML and not is_path(self.chat_template):
            raise refusal(f"has `chat_template` {self.chat_template!r}; write chatml, or a path (./ or /)")
        return self

    @property
    def tokenizer_reference(self) -> str | None:
        """Whose tokenizer it takes, with its revision."""
        return None if self.tokenizer is None else at_revision(self.tokenizer, self.tokenizer_revision)


def name_or_mapping(value: Any) -> str:
    """The tag of a union of a name and a mapping."""
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<name>"


ModelReference: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[Architecture, Tag("<mapping>")], Discriminator(name_or_mapping)
]
"""stage:NAME, a path (begins with ./ or /), a Hub id, or an architecture to initialise."""

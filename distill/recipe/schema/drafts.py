"""Draft heads: the leaves under ``mtp``."""

from __future__ import annotations

from pydantic import Field

from mopd.distill.recipe.base import LearningRate, Strict


class MTPRecipe(Strict):
    """Draft heads (multi-token prediction), which guess what the model will write next.

    They are kept beside the student, trained on the forward that its update takes anyway, and exported with it. The
    student's own weights move as they would without. MiMo-V2-Flash report, arXiv 2601.02780; DeepSeek-V3 report, arXiv
    2412.19437, section 2.2.
    """

    heads: int = Field(
        default=0, ge=0, le=8, description="draft layers; 0: none, those of the checkpoint are left out, with a warning"
    )
    depth: int = Field(
        default=3, ge=1, le=8, description="tokens that the first layer, fed with itself, is taught to guess in a row"
    )
    share: float = Field(default=0.25, gt=0, le=1, description="part of a step's rollouts that the heads learn from")
    lr: LearningRate = Field(
        default=2e-3, description="the heads' peak learning rate (AdamW); its schedule is the student's"
    )
    drafts: int = Field(
        default=3,
        ge=0,
        le=8,
        description="tokens guessed a forward at most where the model writes; how many it is for so many rows is told "
        "from times measured at the start; 0: it writes as without heads",
    )

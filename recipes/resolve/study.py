"""A study's runs, each resolved once; check and run read the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mopd.distill.recipe import ComputeRecipe
from mopd.distill.recipe.study import Study
from mopd.recipes.resolve.resolved import Resolved, resolve
from mopd.recipes.resolve.stages import stage_fingerprint, stages_before


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of a study.

    Attributes:
        name: of its folder in the study's.
        trials: settings that were tried before these were chosen.
        resolved: its recipe on this machine.
        fingerprints: of its stages, by name: runs whose stage has the same one share it.
        needs: the stages that each stage starts from, or whose tokenizer it takes.
        questions: what it is measured on, by leaf; runs that are compared have the same.
        compute: what its training may spend.
        taught: whether any of its domains has a teacher.
        min_headroom: points that its teachers must be above the base.
    """

    name: str
    method: str
    seed: int
    trials: int
    resolved: Resolved
    fingerprints: Mapping[str, str]
    needs: Mapping[str, list[str]]
    questions: Mapping[str, object]
    compute: ComputeRecipe | None
    taught: bool
    min_headroom: float

    @property
    def equal_to(self) -> str | None:
        """The name of the run whose compute is its budget, if one is."""
        return None if self.compute is None or self.compute.equal_to is None else f"{self.compute.equal_to}-{self.seed}"


def study_runs(study: Study) -> list[StudyRun]:
    """All runs of a study, in its order: all methods on the first seed, then on the next.

    Raises:
        UserError: see :func:`recipes.resolve.resolved.resolve`.
    """
    return [
        StudyRun(
            child.name,
            child.method,
            child.seed,
            child.recipe.trials,
            resolve(child.recipe),
            fingerprints={name: stage_fingerprint(child.recipe, name) for name in child.recipe.stages},
            needs={name: stages_before(stage) for name, stage in child.recipe.stages.items()},
            questions={"evaluate": child.recipe.evaluate}
            | {f"domains.{name}.task": domain.task for name, domain in child.recipe.domains.items()},
            compute=child.recipe.run.compute,
            taught=any(domain.teacher_weights for domain in child.recipe.domains.values()),
            min_headroom=child.recipe.evaluate.min_headroom,
        )
        for child in study.children
    ]

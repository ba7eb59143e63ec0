"""Teachers as a run has them: what each computes in and where, what it takes of its node, and which share processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mopd.distill.models.heads import HeadSource
from mopd.distill.recipe import FaultRecipe, TeacherPromptRecipe, TeacherRecipe
from mopd.distill.recipe.model_names import SELF, stage_name
from mopd.recipes.resolve.sources import ModelSource
from mopd.recipes.resolve.stages import adapter_folder
from mopd.teachers.kinds import TeacherKind, TeacherSetup, kind_of
from mopd.teachers.kinds.checkpoint import CHECKPOINT

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class ResolvedTeacher:
    """A teacher of the recipe on this machine.

    Attributes:
        settings: its stanza as it is written.
        kind: its row of :data:`teachers.kinds.KINDS`, or of the user's own file.
        model: where its weights, or its tokens, come from.
        device: where it computes; a process without weights only asks, on the CPU.
        dtype: ``float32`` or ``bfloat16``; never auto.
        gpus: part of a GPU that each of its processes takes.
        adapter: absolute folder of its LoRA adapter, wherever a process' working folder is; ``stage:NAME`` until it is
            known where the stage's result lies (:func:`with_folders`).
        faults: how often, and after what pause, it is asked again where an answer was lost; the run's.
    """

    name: str
    settings: TeacherRecipe
    kind: TeacherKind
    model: ModelSource
    device: Device
    dtype: str
    gpus: float
    adapter: str | None
    faults: FaultRecipe

    @property
    def is_self(self) -> bool:
        """Whether it is the student as it starts."""
        return self.settings.model == SELF

    def is_base(self, device: str, dtype: str, attention: str) -> bool:
        """Whether it is what a student that computes so is without the adapter that it trains."""
        plain = self.is_self and self.adapter is None and self.kind is CHECKPOINT
        return plain and (self.device, self.dtype, self.settings.attn_implementation) == (device, dtype, attention)

    @property
    def takes(self) -> dict[str, float]:
        """What each of its processes takes of its node, by Ray's names of resources."""
        return ({"GPU": self.gpus} if self.gpus else {}) | self.settings.resources

    def setup(self, folder: str) -> TeacherSetup:
        """What its source is made from, where ``folder`` has its model. A prompt of its own is no part of that:
        teachers that differ in nothing else share processes."""
        return TeacherSetup(
            self.name, folder, self.device, self.dtype, self.adapter, self.model.trusted,
            self.faults.microbatch_seconds, self.settings.model_copy(update={"prompt": TeacherPromptRecipe()}),
        )  # fmt: skip


def resolve_teacher(
    name: str, settings: TeacherRecipe, model: ModelSource, *, device: Device, dtype: str, faults: FaultRecipe
) -> ResolvedTeacher:
    """A teacher in a run on ``device`` whose student computes in ``dtype``."""
    kind = kind_of(settings, teacher=name)
    where: Device = "cpu"
    if kind.has_weights:
        where = device if settings.device == "auto" else settings.device
    return ResolvedTeacher(
        name,
        settings,
        kind,
        model,
        device=where,
        dtype=resolve_dtype(dtype if settings.dtype == "auto" else settings.dtype, device),
        gpus=settings.gpus if where == "cuda" else 0.0,
        adapter=_adapter(settings.adapter),
        faults=faults,
    )


def _adapter(named: str | None) -> str | None:
    return named if named is None or stage_name(named) is not None else os.path.realpath(named)


def with_folders(teachers: Mapping[str, ResolvedTeacher], out: Path) -> dict[str, ResolvedTeacher]:
    """The teachers of a run in the folder ``out``, with the folders of adapters that its stages have made."""
    folders = {name: stage_name(teacher.adapter) for name, teacher in teachers.items()}
    return {
        name: teacher if (stage := folders[name]) is None else replace(teacher, adapter=str(adapter_folder(out, stage)))
        for name, teacher in teachers.items()
    }


def resolve_dtype(dtype: str, device: Device) -> str:
    """``auto`` is bfloat16 on a GPU, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"


def group_key(teacher: TeacherRecipe) -> tuple[object, ...]:
    """What scores, besides the base that teachers have in common: those that differ in it never share a process."""
    settings = tuple(sorted(teacher.settings.items()))
    scores = (teacher.kind_name, settings, teacher.scorer, teacher.endpoint, teacher.served_model, teacher.api_key_env)
    return (teacher.dtype, teacher.attn_implementation, teacher.tokenizer, *scores)


def placement(teacher: TeacherRecipe) -> dict[str, object]:
    """How many processes a teacher has, and where they are: leaves that teachers over one base share."""
    return {
        "replicas": teacher.replicas,
        "device": teacher.device,
        "gpus": teacher.gpus,
        "resources": tuple(sorted(teacher.resources.items())),
    }


def teacher_groups(teachers: Mapping[str, ResolvedTeacher]) -> list[list[str]]:
    """The teachers that share processes: those of one base, dtype and placement, whatever their adapters."""
    together: dict[tuple[object, ...], list[str]] = {}
    for name, teacher in teachers.items():
        base = teacher.model.source if isinstance(teacher.model.source, str) else SELF
        key = (base, *group_key(teacher.settings), *placement(teacher.settings).values())
        together.setdefault(key, []).append(name)
    return list(together.values())


def turn_takers(groups: Sequence[list[str]], teachers: Mapping[str, ResolvedTeacher]) -> list[list[str]]:
    """The groups that share the processes of ``run.resident_teachers``: all that hold weights."""
    return [names for names in groups if teachers[names[0]].model.has_weights]


def head_sources(teachers: Mapping[str, ResolvedTeacher], folders: Mapping[str, str]) -> tuple[HeadSource, ...]:
    """Where the student reads its teachers' output heads; ``folders`` of their checkpoints by name."""
    return tuple(HeadSource(folder, teachers[n].dtype, teachers[n].model.trusted) for n, folder in folders.items())


def describe(teacher: TeacherRecipe) -> str:
    """What a teacher is, in words: its model, and what scores if that is not all of it."""
    words = "self: the student as it starts" if teacher.model == SELF else teacher.reference
    words += f", with adapter {teacher.adapter}" if teacher.adapter is not None else ""
    return words + kind_of(teacher).describe(teacher)

"""Multi-teacher on-policy distillation: several specialists into one student, without the seesaw.

The public face: what a task, loss, teacher, engine, sink or method of one's own needs, and what a notebook needs. A
name is loaded when it is first used, so that ``import mopd`` costs nothing. To add one, give ``_MODULE_OF`` a row.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    # from a notebook
    "Checked": "mopd.recipes.notebook",
    "build_seesaw": "mopd.recipes.notebook",
    "check": "mopd.recipes.notebook",
    "compare": "mopd.recipes.notebook",
    "load_run": "mopd.recipes.report.data",
    "run": "mopd.recipes.notebook",
    "verify": "mopd.rollouts.verifiers",
    # what can go wrong
    "RunError": "mopd.distill.errors",
    "UserError": "mopd.distill.errors",
    # what crosses the seams
    "Prompt": "mopd.distill.types",
    "Rollout": "mopd.distill.types",
    "ScoredRollout": "mopd.distill.types",
    "Sampler": "mopd.distill.types",
    "Grader": "mopd.distill.types",
    "Weights": "mopd.distill.types",
    # what a teacher says of a rollout
    "Full": "mopd.distill.payloads",
    "Hidden": "mopd.distill.payloads",
    "PAYLOADS": "mopd.distill.payload_rows",
    "Payload": "mopd.distill.payloads",
    "PayloadSpec": "mopd.distill.payload_rows",
    "Sampled": "mopd.distill.payloads",
    "Support": "mopd.distill.payloads",
    "TeacherScore": "mopd.distill.payloads",
    "TopK": "mopd.distill.payloads",
    # a loss
    "GradedTokens": "mopd.distill.loss.base",
    "LossSpec": "mopd.distill.loss.registry",
    "Microbatch": "mopd.distill.loss.microbatch",
    "TokenLoss": "mopd.distill.loss.base",
    "align_logits": "mopd.distill.types",
    "each_teacher": "mopd.distill.loss.base",
    "gap_to_teacher": "mopd.distill.loss.base",
    "log_softmax": "mopd.distill.loss.base",
    "pick": "mopd.distill.loss.base",
    "spread": "mopd.distill.loss.base",
    "teachers_mean": "mopd.distill.loss.base",
    # a task
    "Example": "mopd.rollouts.tasks.base",
    "Generated": "mopd.rollouts.tasks.base",
    "Task": "mopd.rollouts.tasks.base",
    # an environment
    "Drawn": "mopd.rollouts.environments.base",
    "Environment": "mopd.rollouts.environments.base",
    "Step": "mopd.rollouts.environments.base",
    "Tool": "mopd.rollouts.environments.tools",
    "ToolEpisode": "mopd.rollouts.environments.base",
    "tool": "mopd.rollouts.environments.tools",
    # a teacher
    "Conditions": "mopd.teachers.scorer",
    "Scorer": "mopd.teachers.scorer",
    "TeacherKind": "mopd.teachers.kinds.base",
    "TeacherModel": "mopd.teachers.kinds.checkpoint",
    "TeacherReach": "mopd.teachers.kinds.base",
    "TeacherSetup": "mopd.teachers.kinds.base",
    "TeacherSource": "mopd.teachers.scorer",
    "TeacherUse": "mopd.teachers.kinds.base",
    "TeacherView": "mopd.teachers.views",
    # an engine of rollouts
    "Decoding": "mopd.rollouts.engines.base",
    "FrozenModel": "mopd.rollouts.engines.base",
    "RolloutEngine": "mopd.rollouts.engines.base",
    "SamplerProcesses": "mopd.rollouts.engines.base",
    "SamplerSettings": "mopd.rollouts.engines.base",
    "StudentModel": "mopd.rollouts.engines.base",
    "WeightTransport": "mopd.rollouts.engines.base",
    # a sink
    "Sink": "mopd.distill.tracking.sink",
    "TrackedRun": "mopd.distill.tracking.sink",
    # a method
    "MadeMethod": "mopd.recipes.resolve.methods",
    "MadeStudent": "mopd.recipes.resolve.merge_and_cascade",
    "MakingJob": "mopd.recipes.resolve.merge_and_cascade",
    "Method": "mopd.recipes.resolve.methods",
    "Parts": "mopd.recipes.resolve.methods",
}
"""Every public name, and where it is made."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mopd")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mopd' has no attribute {name!r}; it has {', '.join(sorted(_MODULE_OF))}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, "__version__"})

"""What may be written in YAML, and how a recipe is read. Loads neither torch nor ray nor transformers.

schema/ has every leaf, a file for each section of a recipe, source.py those of a dataset or a generator, base.py the
types of fields; files.py reads and writes a recipe, study.py several of one file; model_names.py tells stages, paths
and Hub ids apart; messages.py says what is wrong, json_schema.py is for editors, plugins.py loads `./file.py:NAME`.
To add a leaf, write it in its section's file with default, unit and source, and read it where it matters.
To add a shipped method, engine or kind of teacher, put its name into schema/recipe.py, rollout.py or teachers.py,
beside its row elsewhere.
"""

from mopd.distill.recipe.base import (
    NonNegative,
    Strict,
)
from mopd.distill.recipe.schema.domains import DomainRecipe
from mopd.distill.recipe.schema.drafts import MTPRecipe
from mopd.distill.recipe.schema.lora import LoRA
from mopd.distill.recipe.schema.loss import (
    ESTIMATORS,
    JSD,
    K2,
    TRAPS,
    ChunkedReverseKL,
    CustomLoss,
    ForwardKL,
    FullReverseKL,
    Gated,
    Loss,
    NegativeLogLikelihood,
    PolicyGradient,
    SampledToken,
    SkewedKL,
    TopKReverseKL,
    WeightedReverseKL,
    WholeDistribution,
)
from mopd.distill.recipe.schema.models import Architecture, ModelReference
from mopd.distill.recipe.schema.optimizers import AdamW, Optimizer, PlainSGD
from mopd.distill.recipe.schema.recipe import Recipe
from mopd.distill.recipe.schema.rollout import RolloutRecipe
from mopd.distill.recipe.schema.run import (
    ComputeRecipe,
    EvaluateRecipe,
    PlateauRecipe,
    RunRecipe,
    StaleRecipe,
    StopRecipe,
)
from mopd.distill.recipe.schema.stages import MergeRecipe, StageRecipe
from mopd.distill.recipe.schema.student import Engine, StudentRecipe
from mopd.distill.recipe.schema.teachers import FaultRecipe, TeacherPromptRecipe, TeacherRecipe
from mopd.distill.recipe.schema.track import TrackRecipe, WandbRecipe
from mopd.distill.recipe.schema.vllm import VLLMRecipe
from mopd.distill.recipe.source import EnvironmentSource, GymSource, Source

__all__ = [
    "ESTIMATORS",
    "JSD",
    "K2",
    "TRAPS",
    "AdamW",
    "Architecture",
    "ChunkedReverseKL",
    "ComputeRecipe",
    "CustomLoss",
    "DomainRecipe",
    "Engine",
    "EnvironmentSource",
    "EvaluateRecipe",
    "FaultRecipe",
    "ForwardKL",
    "FullReverseKL",
    "Gated",
    "GymSource",
    "LoRA",
    "Loss",
    "MTPRecipe",
    "MergeRecipe",
    "ModelReference",
    "NegativeLogLikelihood",
    "NonNegative",
    "Optimizer",
    "PlainSGD",
    "PlateauRecipe",
    "PolicyGradient",
    "Recipe",
    "RolloutRecipe",
    "RunRecipe",
    "SampledToken",
    "SkewedKL",
    "Source",
    "StageRecipe",
    "StaleRecipe",
    "StopRecipe",
    "Strict",
    "StudentRecipe",
    "TeacherPromptRecipe",
    "TeacherRecipe",
    "TopKReverseKL",
    "TrackRecipe",
    "VLLMRecipe",
    "WandbRecipe",
    "WeightedReverseKL",
    "WholeDistribution",
]

"""What may be written in YAML, and how a recipe is read. Loads neither torch nor ray nor transformers.

schema.py has every leaf, source.py those of a dataset or a generator, drafts.py those of draft heads, lora.py those of
an adapter, vllm.py those of that engine, base.py the types of fields, loss.py the settings of the estimators; files.py
reads and writes a recipe, study.py several of one file; model_names.py tells stages, paths and Hub ids apart;
messages.py says what is wrong, json_schema.py is for editors, plugins.py loads `./file.py:NAME`.
To add a leaf, write it in schema.py with default, unit and source, and read it where it matters.
To add a shipped method, engine or kind of teacher, put its name into schema.py, beside its row elsewhere.
"""

from mopd.distill.recipe.base import (
    NonNegative,
    Strict,
)
from mopd.distill.recipe.drafts import MTPRecipe
from mopd.distill.recipe.lora import LoRA
from mopd.distill.recipe.loss import (
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
from mopd.distill.recipe.schema import (
    AdamW,
    Architecture,
    ComputeRecipe,
    DomainRecipe,
    Engine,
    EvaluateRecipe,
    FaultRecipe,
    MergeRecipe,
    ModelReference,
    Optimizer,
    PlainSGD,
    PlateauRecipe,
    Recipe,
    RolloutRecipe,
    RunRecipe,
    StageRecipe,
    StaleRecipe,
    StopRecipe,
    StudentRecipe,
    TeacherPromptRecipe,
    TeacherRecipe,
    TrackRecipe,
    WandbRecipe,
)
from mopd.distill.recipe.source import EnvironmentSource, GymSource, Source
from mopd.distill.recipe.vllm import VLLMRecipe

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

"""What may be written in YAML."""

from mopd.distill.recipe.schema import (
    ESTIMATORS as ESTIMATORS,
)
from mopd.distill.recipe.schema import (
    JSD as JSD,
)
from mopd.distill.recipe.schema import (
    K2 as K2,
)
from mopd.distill.recipe.schema import (
    TRAPS as TRAPS,
)
from mopd.distill.recipe.schema import (
    Architecture as Architecture,
)
from mopd.distill.recipe.schema import (
    CustomLoss as CustomLoss,
)
from mopd.distill.recipe.schema import (
    DomainRecipe as DomainRecipe,
)
from mopd.distill.recipe.schema import (
    Engine as Engine,
)
from mopd.distill.recipe.schema import (
    EvaluateRecipe as EvaluateRecipe,
)
from mopd.distill.recipe.schema import (
    FaultRecipe as FaultRecipe,
)
from mopd.distill.recipe.schema import (
    ForwardKL as ForwardKL,
)
from mopd.distill.recipe.schema import (
    FullReverseKL as FullReverseKL,
)
from mopd.distill.recipe.schema import (
    Loss as Loss,
)
from mopd.distill.recipe.schema import (
    NegativeLogLikelihood as NegativeLogLikelihood,
)
from mopd.distill.recipe.schema import (
    NonNegative as NonNegative,
)
from mopd.distill.recipe.schema import (
    Optimizer as Optimizer,
)
from mopd.distill.recipe.schema import (
    PolicyGradient as PolicyGradient,
)
from mopd.distill.recipe.schema import (
    Recipe as Recipe,
)
from mopd.distill.recipe.schema import (
    RolloutRecipe as RolloutRecipe,
)
from mopd.distill.recipe.schema import (
    RunRecipe as RunRecipe,
)
from mopd.distill.recipe.schema import (
    SampledToken as SampledToken,
)
from mopd.distill.recipe.schema import (
    Source as Source,
)
from mopd.distill.recipe.schema import (
    StageRecipe as StageRecipe,
)
from mopd.distill.recipe.schema import (
    StopRecipe as StopRecipe,
)
from mopd.distill.recipe.schema import (
    Strict as Strict,
)
from mopd.distill.recipe.schema import (
    StudentRecipe as StudentRecipe,
)
from mopd.distill.recipe.schema import (
    TeacherRecipe as TeacherRecipe,
)
from mopd.distill.recipe.schema import (
    TopKReverseKL as TopKReverseKL,
)
from mopd.distill.recipe.schema import (
    TrackRecipe as TrackRecipe,
)
from mopd.distill.recipe.schema import (
    WandbRecipe as WandbRecipe,
)

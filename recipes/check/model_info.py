"""Looks at every model of a recipe without loading a weight: its configuration, its tokenizer, its parameters."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import re
from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mopd.distill.models.adapters import ParameterCounts, parameter_counts
from mopd.distill.models.attention import AttentionOffer, AttnImplementation, attention_offer
from mopd.distill.models.families import experts_of, family_of
from mopd.distill.models.flops import ModelCost
from mopd.distill.models.packing import packing_problem
from mopd.distill.recipe import Architecture, LoRA, StageRecipe
from mopd.distill.recipe.messages import guess, nearest
from mopd.distill.recipe.model_names import is_path
from mopd.distill.recipe.plugins import own_code
from mopd.distill.student.moe import has_correction_bias
from mopd.distill.types import UserError
from mopd.recipes.check.made_models import made_model
from mopd.recipes.check.offline import known_config
from mopd.recipes.resolve.checkpoints import empty_model, has_code, local_folder, needs_code, read_checkpoint
from mopd.recipes.resolve.initial import decided_by_tokenizer, taken_tokenizer, trained_tokenizer
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import ModelSource, Origin, tokenizer_origin
from mopd.recipes.resolve.stages import stage_seed
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import give_template, read_template

LARGEST = 50_000_000
"""Parameters of a model that is made and run here within a second; a larger one is not tried."""
TOKENS = 8
PROBE_SECONDS = 60.0
SMALLEST_GRADIENT = 1e-9
"""Norm of a model's gradient as it is initialised, which is about 1."""


def probe(config: Any, parameters: int) -> None:
    """A training step's forward and backward of two sequences, on the CPU; the caller's random state is left as it was.

    Args:
        config: the transformers configuration of a model made from scratch.
        parameters: how many the model has.

    Raises:
        UserError: it fails, with what it said; or what comes out is not finite, or has no gradient.
    """
    if everything := dropped(config):
        raise UserError(f"`config.{everything}` is 1 or more, which drops everything in training; take less than 1")
    if parameters >= LARGEST:
        return
    from transformers import AutoModelForCausalLM  # seconds that a model which is remembered does not cost

    size = config.get_text_config().vocab_size
    ids_BT = torch.arange(2 * TOKENS).remainder(size).view(2, TOKENS)
    what = (
        f"a {config.model_type} of this `config` can be made, and fails on its first training step of {TOKENS} tokens"
    )
    with own_code(what, seconds=PROBE_SECONDS, remedy="fix the `config`"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).train()
        logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
        # Any loss does; one that tells tokens apart, as all do.
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flip(1).flatten())
        loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
    initial = f"a {config.model_type} of this `config`, as it is initialised, gives"
    if not logits_BTV.isfinite().all():
        raise UserError(f"{initial} logits that are NaN or infinite; look at its scales (initializer_range, eps)")
    if not math.isfinite(norm):
        raise UserError(f"{initial} a gradient that is NaN or infinite; look at its scales (initializer_range, eps)")
    if norm < SMALLEST_GRADIENT:
        raise UserError(f"{initial} a gradient of {norm:.0e}: it would learn nothing; look at its scales and dropouts")


def dropped(config: Any) -> str | None:
    """The key of a dropout that leaves nothing, if there is one."""
    for key, value in config.get_text_config().to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, int | float) and value >= 1:
            return key
    return None


FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a configuration that the stage's own tokenizer decides."""


_COUNTED: dict[tuple[str, LoRA], ParameterCounts] = {}
"""Of models with an adapter, by configuration: a plan asks often, and a large model takes a second to be made."""
_TRIED_PACKED: dict[tuple[str, AttnImplementation], str | None] = {}
"""Why models cannot be packed, by configuration: those of a study's runs are the same."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model before it is loaded.

    Attributes:
        origin: where its architecture and tokenizer come from.
        config: its transformers configuration.
        tokenizer: its tokenizer; a stage's own is trained here exactly as the stage will train it. None where it lies
            on the Hub, and no network is to be used.
        cost: its parameters, total and active, and what a token costs; counted without making a weight.
        correction_bias: whether its routers have the bias that levels the load of experts.
        attention: how it can compute attention.
        own_code: whether it is made by Python code that lies in its folder, which its stanza trusts.
        unused: names of weights that the checkpoint holds and the model has no place for.
    """

    origin: Origin
    config: Any
    tokenizer: PreTrainedTokenizerBase | None
    cost: ModelCost
    correction_bias: bool
    attention: AttentionOffer
    own_code: bool = False
    unused: tuple[str, ...] = ()

    def empty_model(self) -> Any:
        """The model once more, on the meta device."""
        return empty_model(self.config, trust_remote_code=self.own_code)[0]

    def parameters(self, lora: LoRA | None) -> ParameterCounts:
        """How many of its parameters are trained and how many frozen, with an adapter or without (None).

        Raises:
            UserError: the adapter does not fit; see :func:`distill.models.adapters.with_trained_adapter`.
        """
        if lora is None:
            return ParameterCounts(self.cost.total_parameters, 0)
        key = (self.config.to_json_string(use_diff=False), lora)
        if key not in _COUNTED:
            _COUNTED[key] = parameter_counts(self.empty_model(), lora)
        return _COUNTED[key]

    def packing_problem(self, attention: AttnImplementation) -> str | None:
        """Why its rows cannot be packed where attention is computed so, as a predicate; None: they can.

        One of fewer parameters than :data:`LARGEST` is tried; of another the row of its family says it.
        """
        if self.cost.total_parameters >= LARGEST:
            return None if family_of(self.config).packs else "is of a family that is not known to give the same results"
        key = (self.config.to_json_string(use_diff=False), attention)
        if key not in _TRIED_PACKED:
            _TRIED_PACKED[key] = packing_problem(self.config, attention=attention, trust_remote_code=self.own_code)
        return _TRIED_PACKED[key]

    @property
    def routed_parameters(self) -> float:
        """Parameters of the experts: what a token does not pass, over the share of experts that it is not sent to."""
        text = self.config.get_text_config()
        experts = experts_of(text)
        if experts == 0 or text.num_experts_per_tok >= experts:
            return 0.0
        idle = self.cost.total_parameters - self.cost.active_parameters
        return idle / (1 - text.num_experts_per_tok / experts)


def read_model_infos(
    resolved: Resolved,
    tasks: Mapping[str, Task],
    *,
    offline: bool = False,
    shared: MutableMapping[Hashable, ModelInfo] | None = None,
) -> tuple[dict[str, ModelInfo], list[str]]:
    """What is known of every model by its leaf, such as ``student.model``, and the problems found on the way.

    Args:
        tasks: by domain; a stage's tokenizer is trained on all of them. Where one is missing (it could not be made),
            models made from scratch are left out.
        offline: of a model on the Hub nothing is asked, but the configuration that is shipped or that the recipe gives.
        shared: what is known of models already, from recipes that name the same ones; it grows.
    """
    shared = {} if shared is None else shared
    stages = resolved.recipe.stages
    drawn_from = repr([domain.task for domain in resolved.recipe.domains.values()])
    model_infos: dict[str, ModelInfo] = {}
    problems: list[str] = []
    whole = tasks if set(tasks) == set(resolved.recipe.domains) else None
    looked_at: dict[tuple[str, bool, bool], ModelInfo | None] = {}
    without_hub = resolved.recipe.architectures if offline else None
    for leaf, model in resolved.models.items():
        if model.origin is None:
            continue  # an undeclared stage or a cycle, which check_routes names
        first = resolved.models[model.origin.where]
        named = model.origin.source if isinstance(model.origin.source, str) else first.leaf
        key = named, first.trusted, first.has_weights
        if key not in looked_at:
            # All that it depends on: an architecture's tokenizer is trained on every task, in its stage's own order.
            depends_on = (
                repr(model.origin),
                repr(tokenizer_origin(stages, model.origin)),
                drawn_from,
                whole is None,
                resolved.recipe.seed_of_stages,
                repr(without_hub),
                *key,
            )
            try:
                if depends_on in shared:
                    looked_at[key] = shared[depends_on]
                elif (
                    info := _look(model.origin, first, stages, whole, resolved.recipe.seed_of_stages, without_hub)
                ) is not None:
                    looked_at[key] = shared[depends_on] = info
                else:
                    looked_at[key] = None
            except UserError as error:
                looked_at[key] = None
                problems += [f"`{first.leaf}`: {problem}" for problem in error.problems]
        if (known := looked_at[key]) is not None:
            model_infos[leaf] = known
            problems += _about_code(model, known)
    return model_infos, problems


def architecture_config(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers configuration of a model made from scratch.

    Raises:
        UserError: an unknown architecture, an unknown key, or a value that the configuration refuses.
    """
    name = architecture.architecture
    if name not in CONFIG_MAPPING:
        raise UserError(f"transformers has no architecture {name!r}; {_nearest_architectures(name)}")
    defaults = CONFIG_MAPPING[name]
    known = {*inspect.signature(defaults.__init__).parameters, *defaults().to_dict(), *defaults.attribute_map}
    known -= {"self", "kwargs"}
    known |= {key for key in architecture.config if key not in known and _is_read(defaults, key)}
    problems = [
        f"`config.{key}` is no key of {defaults.__name__}; {guess(key, sorted(known))}"
        for key in architecture.config
        if key not in known
    ]
    problems += [
        f"`config.{key}` is decided by the tokenizer; remove it (the size of the vocabulary is `vocabulary`)"
        for key in FROM_TOKENIZER
        if key in architecture.config
    ]
    if problems:
        raise UserError(*problems)
    try:
        return AutoConfig.for_model(
            name,
            **architecture.config,
            **decided_by_tokenizer(tokenizer),
        )
    except Exception as error:  # each family has exceptions of its own
        raise UserError(f"{defaults.__name__} refuses this `config`: {error}") from error


def _is_read(config_class: Any, key: str) -> bool:
    """Whether a model reads a key that its configuration class does not declare: `head_dim` of Qwen3-MoE, and the older
    names of rotary positions, which transformers takes over."""
    if key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
        return "rope_parameters" in config_class().to_dict()
    if not key.isidentifier():
        return False
    own = config_class.__module__
    modeling = importlib.import_module(own.replace(".configuration_", ".modeling_"))
    if re.search(rf"""["']{key}["']""", inspect.getsource(importlib.import_module(own))):
        return True  # an older name that the configuration takes over
    read = rf"""config\.{key}\b|getattr\([\w.]*config, ["']{key}["']"""
    return re.search(read, inspect.getsource(modeling)) is not None


def _look(
    end: Origin,
    model_source: ModelSource,
    stages: Mapping[str, StageRecipe],
    tasks: Mapping[str, Task] | None,
    run_seed: int,
    without_hub: Mapping[str, Any] | None,
) -> ModelInfo | None:
    """What is known of one model; None where it is initialised here and not every domain has a task.

    Args:
        without_hub: the configurations that the recipe gives; None: the Hub may be asked.
    """
    unused: tuple[str, ...] = ()
    if isinstance(end.source, Architecture):
        if tasks is None:
            return None
        tokenizer = _tokenizer_of(end, stages, tasks, run_seed)
        config = architecture_config(end.source, tokenizer)
        made = made_model(config, probe=probe)
        return ModelInfo(end, config, tokenizer, made.cost, made.correction_bias, made.attention)
    if without_hub is not None and not is_path(end.source):
        tokenizer, own_code = None, False
        model, cost = empty_model(known_config(end.source, without_hub))
    else:
        weights = model_source.has_weights
        checkpoint = read_checkpoint(
            local_folder(end.source, weights=weights),
            permit=_permit(model_source.trust_leaf),
            trust_remote_code=model_source.trusted,
            weights=weights,
        )
        tokenizer, model, cost, unused = checkpoint.tokenizer, checkpoint.model, checkpoint.cost, checkpoint.unused
        own_code = model_source.trusted and has_code(model.config, tokenizer)
    biased = has_correction_bias(model)
    return ModelInfo(end, model.config, tokenizer, cost, biased, attention_offer(model), own_code, unused)


def _tokenizer_of(
    end: Origin, stages: Mapping[str, StageRecipe], tasks: Mapping[str, Task], run_seed: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model made from scratch: trained here as its stage will train it, or taken from another model.

    Raises:
        UserError: there is none where it is taken from, or it does not fit the chat template.
    """
    origin = tokenizer_origin(stages, end)
    assert isinstance(end.source, Architecture)
    if origin is None:
        raise UserError(
            f"`tokenizer` is {end.source.tokenizer}, which leads to no model: an undeclared stage, or back to itself"
        )
    source, stage, takers = origin
    if isinstance(source, Architecture):
        seed = run_seed if stage is None else stage_seed(run_seed, stage)
        tokenizer = trained_tokenizer(source, tasks, seed=seed)
    else:
        tokenizer = taken_tokenizer(takers[0], local_folder(source, weights=False))
    for taker in takers:
        give_template(tokenizer, read_template(taker.chat_template))
    return tokenizer


def _about_code(model: ModelSource, info: ModelInfo) -> list[str]:
    """Whether every stanza that loads a model lets its code run, and none lets code run that is not there."""
    if info.own_code and not model.trusted:
        return [f"`{model.leaf}`: it is made from {info.origin.source}, and {needs_code(_permit(model.trust_leaf))}"]
    own_stanza = model.leaf.rpartition(".")[0] == model.trust_leaf.rpartition(".")[0]
    if model.trusted and not info.own_code and own_stanza:
        return [f"`{model.trust_leaf}` is set and would change nothing (no code lies beside that model); remove it"]
    return []


def _permit(leaf: str) -> str:
    return f"set `{leaf}: true`"


def _nearest_architectures(name: str) -> str:
    near = nearest(name, CONFIG_MAPPING)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}for example mimo_v2_flash, qwen3_moe, mixtral, deepseek_v3, qwen3, llama"

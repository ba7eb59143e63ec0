"""Looks at every model of a recipe without loading a weight: its configuration, its tokenizer, its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distill.flops import ModelCost, model_cost
from distill.moe import experts_of, router_biases
from distill.recipe import Architecture, Recipe
from distill.recipe_schema import guess, nearest
from distill.types import UserError
from recipes.lineage import Origin, is_path, origin, sources
from recipes.models import training_texts
from recipes.probe import probe
from recipes.stages import stage_seed
from recipes.weights import check_weights, weight_files
from rollouts.tasks import Task
from rollouts.tokenizer import build_tokenizer

FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a configuration that the stage's own tokenizer decides."""
HUB_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it is loaded.

    Attributes:
        origin: where its architecture and tokenizer come from.
        config: its transformers configuration.
        tokenizer: its tokenizer; a stage's own is trained here exactly as the stage will train it.
        cost: its parameters, total and active, and what a token costs; counted without making a weight.
        correction_bias: whether its routers have the bias that levels the load of experts.
    """

    origin: Origin
    config: Any
    tokenizer: PreTrainedTokenizerBase
    cost: ModelCost
    correction_bias: bool

    @property
    def routed_parameters(self) -> float:
        """Parameters of the experts: what a token does not pass, over the share of experts that it is not sent to."""
        text = self.config.get_text_config()
        experts = experts_of(text)
        if experts == 0 or text.num_experts_per_tok >= experts:
            return 0.0
        idle = self.cost.total_parameters - self.cost.active_parameters
        return idle / (1 - text.num_experts_per_tok / experts)


def survey(recipe: Recipe, tasks: Mapping[str, Task]) -> tuple[dict[str, Facts], list[str]]:
    """Facts of every model by the leaf that names it, such as ``student.model``, and the problems found on the way.

    Args:
        tasks: by domain; a stage's tokenizer is trained on all of them. Where one is missing (it could not be made),
            models made from nothing are left out.
    """
    facts: dict[str, Facts] = {}
    problems: list[str] = []
    looked_at: dict[str, Facts | None] = {}
    for where, source in sources(recipe).items():
        found = origin(recipe, where, source)
        if found is None:
            continue  # an undeclared stage or a cycle, which check_routes names
        key = found.source if isinstance(found.source, str) else found.where
        if key not in looked_at:
            try:
                looked_at[key] = _look(recipe, found, tasks)
            except UserError as error:
                looked_at[key] = None
                problems += [f"`{found.where}`: {problem}" for problem in error.problems]
        if (known := looked_at[key]) is not None:
            facts[where] = known
    return facts, problems


def architecture_config(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers configuration of a model made from nothing.

    Raises:
        UserError: an unknown architecture, an unknown key, or a value that the configuration refuses.
    """
    name = architecture.architecture
    if name not in CONFIG_MAPPING:
        raise UserError(f"transformers has no architecture {name!r}; {_nearest_architectures(name)}")
    defaults = CONFIG_MAPPING[name]
    known = {*inspect.signature(defaults.__init__).parameters, *defaults().to_dict(), *defaults.attribute_map}
    known -= {"self", "kwargs"}
    problems = [
        f"`config.{key}` is no key of {defaults.__name__}; {guess(key, sorted(known))}"
        for key in architecture.config
        if key not in known
    ]
    problems += [
        f"`config.{key}` is decided by the tokenizer; take it away (the size of the vocabulary is `vocabulary`)"
        for key in FROM_TOKENIZER
        if key in architecture.config
    ]
    if problems:
        raise UserError(*problems)
    try:
        return AutoConfig.for_model(
            name,
            **architecture.config,
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except Exception as error:  # each family has exceptions of its own
        raise UserError(f"{defaults.__name__} refuses this `config`: {error}") from error


def _look(recipe: Recipe, found: Origin, tasks: Mapping[str, Task]) -> Facts | None:
    if isinstance(found.source, Architecture):
        if set(tasks) != set(recipe.domains):
            return None
        seed = recipe.seed if found.stage is None else stage_seed(recipe.seed, found.stage)
        tokenizer = build_tokenizer(training_texts(tasks, seed=seed), found.source.vocabulary)
        config = architecture_config(found.source, tokenizer)
        model, cost = empty_model(config)
        probe(config, cost.total_parameters)
    else:
        tokenizer, model, cost = read_checkpoint(local_folder(found.source))
    biased = any(bias is not None for bias in router_biases(model))
    return Facts(found, model.config, tokenizer, cost, biased)


def read_checkpoint(folder: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, ModelCost]:
    """A checkpoint's tokenizer, its model on the meta device and what that costs, without loading a weight.

    Args:
        folder: as :func:`local_folder` gives it; a Hub model that is still to be downloaded has no weights to look at.

    Raises:
        UserError: something of it is missing or broken.
    """
    config, tokenizer = _read(folder, "configuration", AutoConfig), _read(folder, "tokenizer", AutoTokenizer)
    model, cost = empty_model(config)
    if Path(folder).is_dir():
        check_weights(Path(folder), model)
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError(
            f"the tokenizer in {folder} has no EOS token, which closes every answer; name one as `eos_token` in its "
            f"tokenizer_config.json"
        )
    return tokenizer, model, cost


def empty_model(config: Any) -> tuple[PreTrainedModel, ModelCost]:
    """The model that a configuration makes, on the meta device, and what it costs.

    Raises:
        UserError: none can be made, or it reads in both directions and cannot write.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        cost = model_cost(model)
    except Exception as error:  # each family has exceptions of its own
        raise UserError(f"no language model can be built from its configuration: {error}") from error
    if getattr(model.config, "is_decoder", True) is False:
        raise UserError(
            f"{config.model_type} reads a text in both directions, so it cannot write one; set `is_decoder: true` in "
            f"its configuration, or take a causal architecture"
        )
    return model, cost


def local_folder(source: str) -> str:
    """The folder of a path's checkpoint, or of a Hub model that was downloaded before; else the Hub id itself.

    Raises:
        UserError: nothing usable is there, or the Hub doesn't have it or can't be reached.
    """
    if not is_path(source):
        if Path(source).is_dir():
            raise UserError(f"{source!r} is read as a Hub id, and a folder of that name is here; write ./{source}")
        return _hub_folder(source)
    folder = Path(source)
    try:
        if not folder.is_dir():
            raise UserError(f"no checkpoint at {source} ({folder.resolve()} is not a folder)")
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} is no Hugging Face checkpoint: it holds no config.json")
        weight_files(folder)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(
            f"checkpoint {source} cannot be looked at: {error.strerror}; mend the path, or its rights"
        ) from error
    return source


def _hub_folder(name: str) -> str:
    """A Hub model's folder in the local cache if it is whole there; else its id, after asking the Hub for it once."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(name, local_files_only=True)
        weight_files(Path(folder))
        return folder
    except HFValidationError as error:
        raise UserError(f"{name!r} is neither `stage:NAME`, nor a path (./ or /), nor a Hub id: {error}") from error
    except (LocalEntryNotFoundError, UserError):
        pass  # not there, or not all of it: the rest is downloaded
    try:
        # Asked once: transformers itself would retry for half a minute.
        model_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub has no model {name!r}, or it is private; a path begins with ./"
        ) from error
    except Exception as error:  # no network, no route, a proxy's refusal, a time-out
        raise UserError(
            f"Hub model {name!r} is not in the local cache, and the Hub cannot be reached ({type(error).__name__}); "
            f"download it where there is a network (`hf download {name}`), or give a path that begins with ./"
        ) from error
    return name


def _read(folder: str, what: str, reader: Any) -> Any:
    try:
        return reader.from_pretrained(folder)
    except Exception as error:  # OSError, ValueError, KeyError, JSON errors: whatever a file can be
        raise UserError(f"the {what} in {folder} cannot be read: {error!s:.300}") from error


def _nearest_architectures(name: str) -> str:
    near = nearest(name, CONFIG_MAPPING)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}for example mimo_v2_flash, qwen3_moe, mixtral, deepseek_v3, qwen3, llama"

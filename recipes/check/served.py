"""Teachers behind servers: what a recipe may ask of them, and whether they are there and what it takes them for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx
from transformers import AutoConfig, PreTrainedTokenizerBase

from mopd.distill.endpoint import Endpoint, EndpointLost, EndpointRefused
from mopd.distill.loss.registry import bind
from mopd.distill.recipe import Recipe, TeacherRecipe
from mopd.distill.types import UserError
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import METHODS, decoding, support_of
from mopd.recipes.resolve.sources import SELF, stage_name
from mopd.rollouts.engines.served import ServedSampler
from mopd.rollouts.tasks import Task
from mopd.teachers.kinds.served import Served

ASK_SECONDS = 30.0
"""How long a check waits for a server to take a text apart."""
PROBES = 8
"""Prompts of each domain that a server's tokenizer is tried on."""


def served_source(name: str, teacher: TeacherRecipe, folder: str, seconds: float, *, trust_remote_code: bool) -> Served:
    """A served teacher's source; ``folder`` has the configuration of its model, a request may take ``seconds``."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    vocabulary = int(config.get_text_config().vocab_size)
    return Served(endpoint_of(name, teacher), vocabulary, seconds)


def endpoint_of(name: str, teacher: TeacherRecipe) -> Endpoint:
    """Where a served teacher is.

    Raises:
        UserError: the environment has no key for it.
    """
    assert teacher.endpoint is not None
    where = f"teachers.{name}.api_key_env"
    return Endpoint.reach(
        teacher.endpoint, teacher.served_model or teacher.model, key_env=teacher.api_key_env, where=where
    )


def served_teachers(recipe: Recipe) -> list[str]:
    """The names of teachers behind servers."""
    return [name for name, teacher in recipe.teachers.items() if teacher.endpoint is not None]


def served_sampler(recipe: Recipe, name: str, tokenizer: PreTrainedTokenizerBase) -> ServedSampler:
    """A served teacher as a sampler, which answers greedily as everyone does."""
    how = decoding(recipe, tokenizer)
    return ServedSampler(
        endpoint_of(name, recipe.teachers[name]),
        eos_token_id=how.eos_token_id,
        max_new_tokens=how.max_new_tokens,
        batch_size=recipe.rollout.batch_size,
        faults=recipe.faults,
    )


def check_served(recipe: Recipe) -> Iterator[str]:
    """Whether a recipe asks of served teachers nothing but what a server gives, each problem a sentence."""
    for name in served_teachers(recipe):
        where, teacher = f"`teachers.{name}", recipe.teachers[name]
        if not _is_url(str(teacher.endpoint)):
            yield f"{where}.endpoint` is {teacher.endpoint!r}; a URL is needed, such as http://host:8000/v1"
        if teacher.model == SELF or stage_name(teacher.model) is not None:
            yield (
                f"{where}.model` is {teacher.model}, which a run makes, so no server has it yet; name the Hub id or "
                f"the path of the model that {teacher.endpoint} serves, or take `endpoint` away"
            )
        if teacher.adapter is not None:
            yield (
                f"{where}.adapter` is {teacher.adapter!r}, and a server is not given any; start it with the adapter "
                f"(vLLM: --lora-modules), and name that in `served_model`"
            )
        if METHODS[recipe.method].teachers != "grade":
            yield (
                f"{where}.endpoint`: method {recipe.method!r} needs its teachers' weights, and a server keeps them; "
                f"take `endpoint` away"
            )
            continue
        yield from _asked(recipe, where)


def _is_url(endpoint: str) -> bool:
    try:
        return httpx.URL(endpoint).scheme in ("http", "https")
    except httpx.InvalidURL:
        return False


def _asked(recipe: Recipe, where: str) -> Iterator[str]:
    """What the loss and the rollouts ask."""
    loss, told = bind(recipe.loss), "gives the log-probabilities of its prompts"
    if loss.payload not in ("sampled", "topk"):
        lacks = "hidden states" if loss.payload == "hidden" else "distributions"
        yield (
            f"{where}.endpoint`: a server {told} and no {lacks}, "
            f"which `loss.estimator` {loss.estimator} compares; take policy_gradient, k2 or topk_reverse_kl"
        )
    if loss.support is not None and loss.support.given:
        yield (
            f"{where}.endpoint`: a server {told} and of its own likeliest tokens, and `loss.support` "
            f"{loss.support.whose} asks for the student's; take `support: teacher`"
        )
    if recipe.rollout.temperature != 1.0:
        yield (
            f"{where}.endpoint`: a server {told} at temperature 1, whatever it is asked for, and "
            f"`rollout.temperature` is {recipe.rollout.temperature:g}; set it to 1"
        )


def reach_served(
    recipe: Recipe, tasks: Mapping[str, Task], model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]
) -> Iterator[str]:
    """Whether every served teacher answers, under its name, long enough, and takes texts apart as the student does."""
    for name in served_teachers(recipe):
        where = f"`teachers.{name}.endpoint`"
        try:
            endpoint = endpoint_of(name, recipe.teachers[name])
        except UserError as error:
            yield from error.problems
            continue
        try:
            yield from _listed(endpoint, where, recipe, lengths)
            student = model_infos.get("student.model")
            if student is not None and student.tokenizer is not None:
                yield from _tokenizer(endpoint, where, recipe, tasks, student.tokenizer)
        except EndpointLost as error:
            yield f"{where}: {error}; start the server, or mend the URL"
        except EndpointRefused as error:
            yield f"{where}: {error}"


def _listed(endpoint: Endpoint, where: str, recipe: Recipe, lengths: Mapping[str, Lengths]) -> Iterator[str]:
    models = {str(one.get("id")): one for one in endpoint.models()}
    if endpoint.model not in models:
        yield f"{where} serves {', '.join(models)}, and not {endpoint.model!r}; name one of them in `served_model`"
        return
    context = models[endpoint.model].get("max_model_len")
    longest = max((one.longest_prompt for one in lengths.values()), default=0)
    needed = longest + recipe.rollout.max_new_tokens + 1  # a server writes a token after what it scores
    if isinstance(context, int) and needed > context:
        yield (
            f"{where} has room for {context} tokens, and a prompt of {longest} with `rollout.max_new_tokens` "
            f"{recipe.rollout.max_new_tokens} and the token that every request writes makes {needed}; start it with a "
            f"longer --max-model-len, or lower the limit"
        )


def _tokenizer(
    endpoint: Endpoint,
    where: str,
    recipe: Recipe,
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[str]:
    """Prompts of every domain, taken apart by both, in a request such as a run makes."""
    texts = [
        task.example(seed=recipe.seed, split="train", index=i).text for task in tasks.values() for i in range(PROBES)
    ]
    ours = [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]  # type: ignore[union-attr]
    support = support_of(recipe, tokenizer)
    likeliest = 0 if support is None else min(support.k + len(support.forced), len(tokenizer))
    choices = endpoint.complete(
        texts, seconds=ASK_SECONDS, max_tokens=1, return_token_ids=True, prompt_logprobs=likeliest
    )
    for text, mine, choice in zip(texts, ours, choices, strict=True):
        theirs = choice.get("prompt_token_ids")
        if theirs != mine:
            yield (
                f"{where} takes {text[:40]!r} apart into {str(theirs)[:60]}, and the student's tokenizer into "
                f"{str(mine)[:60]}; a teacher scores the student's token ids, so serve a model of its family"
            )
            return

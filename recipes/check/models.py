"""Checks of models against each other and against the recipe: engines, tokenizers, vocabularies, context."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.models.adapters import adapter_targets, with_adapters
from mopd.distill.models.attention import AttnImplementation
from mopd.distill.models.families import family_of
from mopd.distill.models.heads import head_problem
from mopd.distill.models.load import FP8
from mopd.distill.models.mtp import count_heads, draft_family, is_head_tensor
from mopd.distill.recipe import (
    Engine,
    ModelReference,
    MTPRecipe,
    RolloutRecipe,
    StageRecipe,
    StudentRecipe,
    TeacherRecipe,
)
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.model_names import PREFIX, hub_name, is_path, stage_name
from mopd.distill.storage import Digest, digest_of
from mopd.distill.student.engine import check_engine
from mopd.distill.types import UserError
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.checkpoints import empty_model, weight_files
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import ModelSource
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.engines import engine_of
from mopd.rollouts.tokenizer import control_ids
from mopd.teachers.compatibility import compare_heads, compare_tokenizers
from mopd.teachers.token_bytes import token_bytes

NOT_EXPORTED = "they are neither used, nor trained, nor exported"
"""Said of weights of the student's checkpoint before a run, and once more of its export."""


def check_models(resolved: Resolved, model_infos: Mapping[str, ModelInfo]) -> list[str]:
    """Every problem between the recipe and its models, each a sentence; models without facts are passed over.

    Args:
        model_infos: by the leaf that names the model, see :func:`recipes.check.model_info.read_model_infos`.
    """
    recipe = resolved.recipe
    heads = _heads_of(recipe.student, recipe.mtp, recipe.method, recipe.stages)
    return [
        *_unsampled(resolved.models, model_infos),
        *_packed(model_infos),
        *_engines(recipe.student, recipe.stages, model_infos, resolved.device),
        *_samplers(recipe.rollout, recipe.student, recipe.stages, model_infos, resolved.device),
        *_attention(recipe.teachers, model_infos),
        *_packed_rows(recipe.student, recipe.stages, resolved.teachers, model_infos),
        *_teachers(resolved.teachers, resolved.loss, model_infos),
        *_support(resolved.loss, model_infos),
        *_adapters(resolved.teachers, recipe.stages, model_infos),
        *_draft_heads(heads, resolved.models, model_infos),
        *_heads_under_adapters(recipe.student, recipe.stages, heads_by_leaf(recipe.mtp, recipe.stages)),
        *(_heads(resolved.teachers, recipe.student, model_infos) if resolved.loss.payload == "hidden" else ()),
    ]


@dataclass(frozen=True, slots=True)
class _HeadsOfRun:
    """The draft heads of the run or of a stage; ``leaf`` names the model that it starts from."""

    where: str
    leaf: str
    mtp: MTPRecipe
    engine: Engine
    method: str
    lora: bool


def _heads_of(
    student: StudentRecipe, mtp: MTPRecipe, method: str, stages: Mapping[str, StageRecipe]
) -> dict[str, _HeadsOfRun]:
    """By name of the stage; the run's own has none."""
    runs = {"": _HeadsOfRun("", "student.model", mtp, student.engine, method, student.lora is not None)}
    for name, stage in stages.items():
        where = f"stages.{name}."
        adapter = stage.lora is not None
        runs[name] = _HeadsOfRun(where, f"{where}from", stage.mtp, stage.engine, stage.method, adapter)
    return runs


def _draft_heads(
    runs: Mapping[str, _HeadsOfRun], models: Mapping[str, ModelSource], model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    """Whether run and stages can have the draft heads that they ask for."""
    for run in runs.values():
        where, leaf, mtp = run.where, run.leaf, run.mtp
        if not mtp.heads:
            if run.method == "draft_heads":
                yield f"`{where}method` is draft_heads, and `{where}mtp.heads` is 0: set how many it is to teach"
            continue
        if run.lora:
            lora = f"{where}lora" if where else "student.lora"
            yield (
                f"`{where}mtp.heads` is {mtp.heads} and `{lora}` is set: draft heads are not exported with an adapter; "
                "remove one of them"
            )
        if run.engine.zero_stage == 3:
            yield (
                f"`{where}mtp.heads` is {mtp.heads}, and zero_stage 3 keeps a part of embedding and output head on "
                f"each rank, which draft heads need whole; use zero_stage 2, or set `{where}mtp.heads: 0`"
            )
        info = model_infos.get(leaf)
        if info is None:
            continue
        try:
            draft_family(info.config.get_text_config())
        except UserError as error:
            yield f"`{where}mtp.heads` is {mtp.heads}: {error}"
            continue
        before = next(iter(models[leaf].stages), None)
        text = info.config.get_text_config()
        there = count_heads(info.unused, text) if before is None else runs[before].mtp.heads
        if there not in (0, mtp.heads):
            what = f"`{leaf}`: the checkpoint" if before is None else f"stage:{before}"
            yield f"`{where}mtp.heads` is {mtp.heads}, and {what} has {there} draft layers; set it to {there}, or to 0"


def _unsampled(models: Mapping[str, ModelSource], model_infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    """Models of families that the sampler cannot write with: a student, and whoever is measured."""
    for leaf, model in models.items():
        info = model_infos.get(leaf)
        if info is not None and model.has_weights and not family_of(info.config).sampled:
            yield (
                f"`{leaf}` is a {info.config.model_type}, whose states, cache or positions the sampler of this "
                f"version cannot keep for rows of unequal length, so that it would write from another distribution; "
                f"take a model of another family (docs/families.md)"
            )


def _packed(model_infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    """A student whose weights are packed: an optimizer moves plain ones."""
    for leaf, info in model_infos.items():
        method = _packing(info)
        if method is not None and not leaf.startswith("teachers."):
            yield (
                f"`{leaf}` is a checkpoint whose weights are quantised ({method}); a model that is trained needs plain "
                f"weights: take the release in bfloat16, or unpack it first"
            )


def _packing(info: ModelInfo) -> str | None:
    settings = getattr(info.config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "of an unnamed method")


def _unadapted(
    student: StudentRecipe, stages: Mapping[str, StageRecipe], model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    """What an adapter that is trained leaves as it is, though its leaf might be read otherwise, each a sentence."""
    trained = {"student": ("student.model", student.lora)}
    trained |= {f"stages.{name}": (f"stages.{name}.from", stage.lora) for name, stage in stages.items()}
    for section, (leaf, lora) in trained.items():
        if lora is None or leaf not in model_infos:
            continue
        family = model_infos[leaf].config.model_type
        targets = adapter_targets(model_infos[leaf].empty_model(), lora)
        if targets.left_out:
            yield (
                f"`{section}.lora`: layers called {', '.join(targets.left_out)} are not adapted, because peft reads "
                f"these names as the experts of a {family}"
            )
        if model_infos[leaf].routed_parameters and not lora.experts:
            yield f"`{section}.lora`: the experts of the {family} are not adapted; `experts: true` adapts them"


def _heads_under_adapters(
    student: StudentRecipe, stages: Mapping[str, StageRecipe], heads: Mapping[str, MTPRecipe]
) -> Iterator[str]:
    """Draft heads and an adapter of one model: the heads learn beside a whole one alone."""
    trained: dict[str, StudentRecipe | StageRecipe] = {"student.model": student}
    for leaf, settings in {**trained, **{f"stages.{name}.from": stage for name, stage in stages.items()}}.items():
        if settings.lora is not None and heads[leaf].heads:
            section = leaf.rpartition(".")[0]
            where = "mtp" if section == "student" else f"{section}.mtp"
            yield (
                f"`{where}.heads` is {heads[leaf].heads}, and `{section}.lora` trains an adapter: draft heads learn "
                f"beside a whole model alone in this version; take one of them away"
            )


def heads_by_leaf(mtp: MTPRecipe, stages: Mapping[str, StageRecipe]) -> dict[str, MTPRecipe]:
    """The draft heads of the run and of its stages, by the leaf that names the model which gets them."""
    return {"student.model": mtp, **{f"stages.{name}.from": stage.mtp for name, stage in stages.items()}}


def model_warnings(
    models: Mapping[str, ModelSource],
    model_infos: Mapping[str, ModelInfo],
    mtp: MTPRecipe,
    student: StudentRecipe,
    stages: Mapping[str, StageRecipe],
) -> Iterator[str]:
    """What becomes of weights that are not loaded as they are, and what an adapter leaves as it is, each a sentence."""
    heads = heads_by_leaf(mtp, stages)
    yield from _unadapted(student, stages, model_infos)
    for leaf, info in model_infos.items():
        text, kept = info.config.get_text_config(), leaf in heads and bool(heads[leaf].heads)
        unused = [name for name in info.unused if not (kept and is_head_tensor(name, text))]
        if unused:
            named = ", ".join(unused[:2]) + ", ..." * (len(unused) > 2)  # not per token
            count = count_heads(unused, text) if leaf in heads else 0
            keep = f" (its {count} draft layers are kept with `mtp.heads: {count}`)" if count else ""
            yield (
                f"`{leaf}`: the checkpoint has {len(unused)} weights that its {info.config.model_type} has no "
                f"place for ({named}), such as draft heads; {NOT_EXPORTED}{keep}"
            )
        if (method := _packing(info)) is not None and leaf.startswith("teachers.") and models[leaf].has_weights:
            if method == FP8:
                yield (
                    f"`{leaf}`: its weights are in FP8; they are unpacked into the teacher's `dtype` as it loads, and "
                    f"take the memory of plain ones, as planned"
                )
                continue
            yield (
                f"`{leaf}`: its weights are quantised ({method}); transformers unpacks them as it loads, or computes "
                f"with them where the library of that method is installed, and memory is planned for plain ones"
            )


def check_lengths(
    model_infos: Mapping[str, ModelInfo],
    lengths: Mapping[str, Lengths],
    *,
    trained: Mapping[str, Sequence[str]],
    max_new_tokens: int,
) -> list[str]:
    """Whether rollouts fit the context of student and teachers, and gold answers that of whom they are trained into.

    Args:
        lengths: by domain, see :func:`recipes.check.tasks.check_tasks`; a domain without them is passed over.
        trained: the domains of each training on gold answers: ``method`` is the run's, ``stages.NAME`` a stage's.
        max_new_tokens: of a rollout.
    """
    if not lengths:
        return []
    asked = max(lengths, key=lambda name: lengths[name].longest_prompt)
    cap, prompt = max_new_tokens, lengths[asked].longest_prompt
    rollout = (
        f"`rollout.max_new_tokens` {cap} after a prompt of {prompt} tokens (domain {asked!r}) makes {cap + prompt}"
    )
    # By what is too long, so that models of one origin are told of once.
    problems: dict[str, None] = {}
    for leaf, model in model_infos.items():
        if not leaf.startswith("stages."):
            problems |= dict.fromkeys(_beyond(model, cap + prompt, rollout, "lower it"))
    for where, domains in trained.items():
        leaf = "student.model" if where == "method" else f"{where}.from"
        known = [name for name in domains if name in lengths]
        if leaf in model_infos and known:
            longest = max(known, key=lambda name: lengths[name].longest_pair)
            needed = lengths[longest].longest_pair
            answer = f"a training prompt of domain {longest!r} with its gold answer has {needed} tokens"
            problems |= dict.fromkeys(_beyond(model_infos[leaf], needed, answer, "take that row out"))
    return list(problems)


def _beyond(model: ModelInfo, needed: int, what: str, remedy: str) -> Iterator[str]:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and needed > context:
        yield (
            f"{what}, beyond the context of {context} tokens (max_position_embeddings) of the model that "
            f"`{model.origin.where}` names; {remedy}, or take a model with a longer context"
        )


def _engines(
    student: StudentRecipe,
    stages: Mapping[str, StageRecipe],
    model_infos: Mapping[str, ModelInfo],
    device: Literal["cpu", "cuda"],
) -> Iterator[str]:
    trained: dict[str, tuple[str, StudentRecipe | StageRecipe]] = {"student": ("student.model", student)}
    for name, stage in stages.items():
        trained[f"stages.{name}"] = (f"stages.{name}.from", stage)
    for section, (leaf, settings) in trained.items():
        if leaf not in model_infos:
            continue
        engine = settings.engine
        if settings.lora is not None:
            try:
                model_infos[leaf].parameters(settings.lora)
            except UserError as error:
                yield from (f"`{section}.lora` {problem}" for problem in error.problems)
        try:
            check_engine(model_infos[leaf].config, engine, settings.optimizer, device=device, lora=settings.lora)
        except UserError as error:
            yield from (f"`{section}.engine`: {problem}" for problem in error.problems)
        if refusal := model_infos[leaf].attention.refused.get(engine.attn_implementation):
            yield f"`{section}.engine.attn_implementation`: {refusal}"
        rate = engine.expert_bias_rate
        if (
            rate > 0
            and rate != Engine.model_fields["expert_bias_rate"].default
            and not model_infos[leaf].correction_bias
        ):
            yield (
                f"`{section}.engine.expert_bias_rate` is set and would change nothing (no router of "
                f"{model_infos[leaf].config.model_type} has a correction bias); remove it"
            )


def _samplers(
    rollout: RolloutRecipe,
    student: StudentRecipe,
    stages: Mapping[str, StageRecipe],
    model_infos: Mapping[str, ModelInfo],
    device: str,
) -> Iterator[str]:
    """What the engine of rollouts cannot do with a model that it is to sample."""
    try:
        engine = engine_of(rollout.engine, workers=rollout.workers)
    except UserError:  # check_engine says it
        return
    sampled = {"student.model": student.lora} | {
        f"stages.{name}.from": stage.lora
        for name, stage in stages.items()
        if METHODS[stage.method].samples or stage.plateau is not None
    }
    for leaf, lora in sampled.items():
        if engine.refused is not None and leaf in model_infos:
            yield from engine.refused(rollout, model_infos[leaf].config, lora, device)


def _packed_rows(
    student: StudentRecipe,
    stages: Mapping[str, StageRecipe],
    teachers: Mapping[str, ResolvedTeacher],
    model_infos: Mapping[str, ModelInfo],
) -> Iterator[str]:
    """Models that learn or score packed, and would do so with another result."""
    leaves = {f"stages.{name}.from": (f"stages.{name}.engine", stage.engine) for name, stage in stages.items()}
    leaves["student.model"] = ("student.engine", student.engine)
    asked: dict[str, tuple[str, AttnImplementation]] = {
        leaf: (where, own.attn_implementation) for leaf, (where, own) in leaves.items() if own.packing
    }
    if student.engine.packing:
        asked |= {
            f"teachers.{name}.model": ("student.engine", teacher.settings.attn_implementation)
            for name, teacher in teachers.items()
            if teacher.kind.packs
        }
    for leaf, (where, attention) in asked.items():
        info = model_infos.get(leaf)
        if info is None or attention in info.attention.refused:
            continue  # said elsewhere
        if (why := info.packing_problem(attention)) is not None:
            family = info.config.model_type
            yield f"`{where}.packing` is true, and the {family} that `{leaf}` names {why}; set it to false"


def _attention(teachers: Mapping[str, TeacherRecipe], model_infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    for name, teacher in teachers.items():
        info = model_infos.get(f"teachers.{name}.model")
        if info is not None and (refusal := info.attention.refused.get(teacher.attn_implementation)):
            yield f"`teachers.{name}.attn_implementation`: {refusal}"


def _teachers(
    teachers: Mapping[str, ResolvedTeacher], loss: BoundLoss, model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    student = model_infos.get("student.model")
    full = loss.payload not in (None, "sampled")
    for name in teachers:
        teacher = model_infos.get(f"teachers.{name}.model")
        if student is None or teacher is None:
            continue
        if teachers[name].settings.reads_own_tokens:
            yield from (
                f"`teachers.{name}.tokenizer` is own, and {problem}" for problem in _own_tokens(teacher, student)
            )
            continue
        if teacher is student:
            continue
        different: list[str] = []
        used = 0
        if teacher.tokenizer is not None and student.tokenizer is not None:
            different = compare_tokenizers(teacher.tokenizer, student.tokenizer)
            used = max(student.tokenizer.get_vocab().values()) + 1
        apart = f", or let it score its own: `teachers.{name}.tokenizer: own` (docs/tokenizers.md)" if different else ""
        different = different or compare_heads(teacher.config, student.config, full=full, tokens=used)
        for problem in different:
            yield (
                f"`teachers.{name}` ({_told(teacher)}) {problem}; a teacher scores the student's token ids, so take "
                f"one of the student's family ({_told(student)}){apart}"
            )


def _own_tokens(teacher: ModelInfo, student: ModelInfo) -> Iterator[str]:
    """What keeps the tokens of two models from being aligned, as ends of sentences."""
    for whose, info in (("the student's tokenizer", student), ("its tokenizer", teacher)):
        if info.tokenizer is not None:
            try:
                token_bytes(info.tokenizer, control_ids(info.tokenizer))
            except UserError as error:
                yield f"{whose} ({_told(info)}) {error}"
    if teacher.tokenizer is not None:
        tokens = max(teacher.tokenizer.get_vocab().values()) + 1
        yield from (
            f"it {problem}" for problem in compare_heads(teacher.config, teacher.config, full=True, tokens=tokens)
        )


def _support(loss: BoundLoss, model_infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    student = model_infos.get("student.model")
    if student is None or loss.support is None:
        return
    size = student.config.get_text_config().vocab_size
    forced = len(control_ids(student.tokenizer)) if student.tokenizer is not None else 0
    both = loss.support.whose == "union"
    if loss.support.k * (1 + both) + forced >= size:
        yield (
            f"`loss.k` is {loss.support.k}{' for each of the two' * both}, and with {forced} control tokens that is "
            f"the student's whole output head of {size} tokens; take `loss: {{estimator: full_reverse_kl}}`, which is "
            f"the same, or a smaller k"
        )


def _adapters(
    teachers: Mapping[str, ResolvedTeacher], stages: Mapping[str, StageRecipe], model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    for name, teacher in teachers.items():
        if teacher.adapter is None:
            continue
        base = model_infos.get(f"teachers.{name}.model")
        where, given = f"`teachers.{name}.adapter`", teacher.settings.adapter
        if (made := stage_name(given)) is not None:
            yield from (f"{where} is {given}, {problem}" for problem in _stage_adapter(made, teacher.model, stages))
        elif given is not None and not is_path(given):
            yield f"{where} is {given!r}; an adapter is a folder: write its path, which begins with ./ or /"
        elif base is not None:
            if (other := _other_base(teacher.adapter, base)) is not None:
                yield f"{where}: {teacher.adapter} {other}"
                continue
            try:
                with_adapters(
                    empty_model(base.config, trust_remote_code=base.own_code)[0], [teacher.adapter], device="cpu"
                )
            except UserError as error:
                yield f"{where}: {error}"


def _stage_adapter(name: str, model: ModelSource, stages: Mapping[str, StageRecipe]) -> Iterator[str]:
    """Whether a stage makes an adapter over a teacher's model; a predicate where it does not."""
    if name not in stages:
        yield f"and no stage {name!r} is declared under `stages`; {guess(name, stages)}"
    elif stages[name].lora is None:
        yield f"and that stage trains a whole model; give it `lora`, or write `model: {PREFIX}{name}` alone"
    elif stages[name].reference != model.source:
        yield (
            f"which is trained over {_source_told(stages[name].reference)} (`stages.{name}.from`), and `model` is "
            f"{_source_told(model.source)}; take the same base"
        )


def _source_told(source: ModelReference) -> str:
    return source if isinstance(source, str) else f"a {source.architecture} made from scratch"


def _other_base(adapter: str, base: ModelInfo) -> str | None:
    """Whether an adapter says that it was trained on another base than its teacher's, as a predicate.

    Shapes alone cannot tell: all models of one size fit. A base is known by its Hub id, or by its weights where both
    are folders of this machine.
    """
    try:
        named = json.loads((Path(adapter) / "adapter_config.json").read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None  # `with_adapters` says what is wrong with it
    source = base.origin.source
    if not isinstance(named, str) or not named or not isinstance(source, str) or stage_name(source) is not None:
        return None
    if Path(named).is_dir() and is_path(source):
        here, there = Path(source), Path(named)
        try:
            same = here.resolve() == there.resolve() or _digests(here) == _digests(there)
        except (OSError, UserError):
            return None
    elif is_path(named) or is_path(source) or Path(named).is_absolute():
        return None  # a folder against a Hub id, or a folder of another machine: nobody can tell
    else:
        same = named.lower() == hub_name(source)[0].lower()
    if same:
        return None
    return (
        f"was trained on the base {named}, and `model` is {source}; take that base, or, if their weights are the same, "
        f"write {source} as `base_model_name_or_path` of its adapter_config.json"
    )


def _digests(folder: Path) -> list[Digest]:
    """Of a checkpoint's files of weights."""
    return [digest_of(path) for path in weight_files(folder)]


def _heads(
    teachers: Mapping[str, ResolvedTeacher], student: StudentRecipe, model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    """Whether hidden states and a head say as much as logits, of the student and of every teacher."""
    if student.lora is not None and student.lora.embeddings:
        yield (
            "`student.lora.embeddings` adapts the output head, and hidden states need a plain one; leave it out, or "
            "take `loss: {estimator: full_reverse_kl, payload: full}`"
        )
    given = {t.model.leaf: None if stage_name(t.settings.adapter) else t.adapter for t in teachers.values()}
    adapters = {"student.model": None} | given
    for leaf, folder in adapters.items():
        if leaf not in model_infos:
            continue
        model = empty_model(model_infos[leaf].config, trust_remote_code=model_infos[leaf].own_code)[0]
        try:
            model = with_adapters(model, [folder] if folder else [], device="cpu")
        except UserError:
            continue  # told by _adapters
        if problem := head_problem(model):
            yield (
                f"`{leaf.removesuffix('.model')}` ({_told(model_infos[leaf])}) {problem}, so its hidden states do not "
                f"give its distribution; take `loss: {{estimator: full_reverse_kl, payload: full}}`"
            )


def _told(model_infos: ModelInfo) -> str:
    source = model_infos.origin.source
    return source if isinstance(source, str) else f"made from scratch by `{model_infos.origin.where}`"

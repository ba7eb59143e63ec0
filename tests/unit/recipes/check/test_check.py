"""Static checks with real tiny models: tokenizers, engines, lengths, the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_kit import CONFIG, check, problems, recipe, save_model, tokenizer_of, tree
from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mopd.distill.errors import UserError
from mopd.distill.recipe.files import load_recipe, shipped_recipes
from mopd.distill.recipe.study import Study, load
from mopd.recipes import SHIPPED
from mopd.recipes.check.model_info import read_model_infos
from mopd.recipes.check.offline import unchecked
from mopd.recipes.check.study import check_study
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.study import study_runs
from mopd.recipes.run.launch import teacher_folders
from mopd.rollouts.tasks import TASKS
from mopd.teachers.compatibility import compare_heads, compare_tokenizers

BERT = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}


def base(**changes: Any) -> dict[str, Any]:
    """The stages of the small recipe with another base."""
    stages = tree()["stages"]
    return {**stages, "base": {"from": {**stages["base"]["from"], **changes}}}


@pytest.mark.parametrize("name", shipped_recipes(SHIPPED))
def test_every_shipped_recipe_passes(tmp_path: Path, name: str) -> None:
    if name == "smollm2" and not Path("models").is_dir():
        pytest.skip("`make smollm2` makes the model that it starts from")
    # Models that lie on the Hub are planned from their configurations; see test_offline.py.
    made = load(name, shipped=SHIPPED)
    folder = tmp_path / "run"
    plan = (
        check_study(made, study_runs(made), folder)
        if isinstance(made, Study)
        else check(made, folder, offline=bool(unchecked(resolve(made))))
    )
    assert plan.disk_bytes > 0
    assert not (tmp_path / "run").exists()  # a check leaves nothing behind


def test_the_plan_counts_what_is_there(tmp_path: Path) -> None:
    made = recipe(rollout={"max_new_tokens": 40, "samples_per_prompt": 3})
    plan = check(made, tmp_path)
    tokenizer = read_model_infos(resolve(made), dict.fromkeys(("math",), TASKS["arithmetic"]))[0][
        "student.model"
    ].tokenizer
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIG, vocab_size=len(tokenizer)))
    real = sum(p.numel() for p in model.parameters())
    assert {m.name: (m.parameters, m.active_parameters) for m in plan.models} == dict.fromkeys(
        ("stage:base", "stage:math", "teacher math", "student"), (real, real)
    )
    examples = [TASKS["arithmetic"].example(seed=0, split="train", index=i) for i in range(32)]
    prompts = [len(tokenizer(e.text)["input_ids"]) for e in examples]
    answers = [len(tokenizer(e.answer)["input_ids"]) + 1 for e in examples]  # and EOS
    (step,) = plan.steps
    assert step.rollouts == 4 * 3
    assert step.tokens == pytest.approx(12 * (sum(prompts) + sum(answers)) / 32)
    assert step.most_tokens == 12 * (max(prompts) + 40)
    assert [(p.phase, p.name, p.count) for p in plan.processes if p.phase == "run"] == [
        ("run", "rank of the student", 1),
        ("run", "teacher math", 1),
    ]


def test_an_anchor_is_the_model_that_the_student_starts_from(tmp_path: Path) -> None:
    start, expert = (save_model(tmp_path / name, tokenizer_of("arithmetic")) for name in ("start", "expert"))
    anchored = recipe(
        student={"model": start},
        domains={
            "math": {"task": "arithmetic", "teacher": "math"},
            "rest": {"task": "ordering", "teacher": "anchor"},
        },
        teachers={"math": {"model": expert}, "anchor": {"model": "self", "replicas": 3}},
        stages={},
    )
    plan = check(anchored, tmp_path / "run")
    assert {m.name: m.made for m in plan.models}["teacher anchor"] == "self: the student as it starts"
    assert {p.name: p.count for p in plan.processes if p.name.startswith("teacher")} == {
        "teacher math": 1,
        "teacher anchor": 3,
    }
    assert teacher_folders(resolve(anchored).routes, resolve(anchored).teachers, tmp_path / "run") == {
        "math": expert,
        "anchor": start,
    }


def test_the_plan_counts_the_largest_of_teachers_that_take_turns(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("arithmetic", "ordering")
    small, large = save_model(tmp_path / "small", tokenizer), save_model(tmp_path / "large", tokenizer, hidden_size=32)
    sections = {
        "student": {"model": small},
        "domains": {
            "math": {"task": "arithmetic", "teacher": "one"},
            "rest": {"task": "ordering", "teacher": "other"},
        },
        "teachers": {"one": {"model": small}, "other": {"model": large}},
        "stages": {},
    }
    held = check(recipe(**sections), tmp_path / "run")
    turns = check(recipe(**sections, run={"resident_teachers": 1}), tmp_path / "run")
    sizes = {process.name: process.bytes_each for process in held.processes}
    assert [(p.name, p.count, p.bytes_each) for p in turns.processes if p.phase == "run" and "teacher" in p.name] == [
        ("teacher other, or another in its place", 1, sizes["teacher other"])
    ]
    assert held.memory_bytes - turns.memory_bytes == pytest.approx(sizes["teacher one"])


def test_the_plan_counts_teachers_that_write(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("arithmetic", "ordering")
    small, large = save_model(tmp_path / "small", tokenizer), save_model(tmp_path / "large", tokenizer, hidden_size=64)
    sections = {
        "student": {"model": small},
        "domains": {"math": {"task": "arithmetic", "teacher": "one", "prompts": 8}},
        "teachers": {"one": {"model": large}},
        "stages": {},
        "loss": {"estimator": "full_reverse_kl"},
    }
    plans = {
        "mopd": check(recipe(**sections), tmp_path / "run"),
        "mixed": check(recipe(**sections, rollout={"off_policy": 0.25}), tmp_path / "run"),
        "first": check(recipe(**sections, rollout={"off_policy": 0.25, "off_policy_steps": 1}), tmp_path / "run"),
        "both": check(recipe(**sections, method="supervised_distillation"), tmp_path / "run"),
        "write": check(recipe(**sections | {"loss": {"estimator": "nll"}}, method="off_policy"), tmp_path / "run"),
    }
    of_teachers = {
        name: [p.name for p in plan.processes if p.phase == "run" and "teacher" in p.name]
        for name, plan in plans.items()
    }
    assert of_teachers == {
        "mopd": ["teacher one"],
        **{name: ["teacher one", "writing teacher one"] for name in ("mixed", "first", "both")},
        "write": ["writing teacher one"],
    }
    work = {name: {part.name: part.flops for part in plan.work} for name, plan in plans.items()}
    own, by_teachers = work["mopd"]["rollouts"], work["both"]["rollouts"]
    assert by_teachers == work["write"]["rollouts"] > own
    assert work["mixed"]["rollouts"] == pytest.approx(0.75 * own + 0.25 * by_teachers)
    part = 0.25 / recipe(**sections).run.steps
    assert work["first"]["rollouts"] == pytest.approx((1 - part) * own + part * by_teachers)
    assert "scores" not in work["write"]
    assert work["both"]["scores"] == work["mopd"]["scores"]


def study(tmp_path: Path, **methods: dict[str, Any]) -> list[str]:
    """The problems of a study of the small recipe's with these changes each."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree() | {"methods": methods, "seeds": [0]}))
    made = load(str(tmp_path / "study.yaml"), shipped=SHIPPED)
    assert isinstance(made, Study)
    try:
        check_study(made, study_runs(made), tmp_path / "run")
    except UserError as error:
        return list(error.problems)
    return []


def equal_to(name: str) -> dict[str, Any]:
    return {
        "run": {"compute": {"equal_to": name}},
        "student": {**tree()["student"], "optimizer": {"schedule": "constant"}},
    }


def test_a_budget_is_that_of_a_method_of_the_study(tmp_path: Path) -> None:
    assert study(tmp_path, first={}, second=equal_to("first"), third=equal_to("second")) == []
    (missing,) = study(tmp_path, first={}, second=equal_to("frist"))
    assert "`methods.second.run.compute.equal_to`: no method is called 'frist'; did you mean" in missing
    circle = study(tmp_path, first=equal_to("second"), second=equal_to("first"), third=equal_to("first"))
    assert circle == [
        f"`methods.{a}.run.compute.equal_to` leads back to itself: {a} waits for {b} waits for {a}; one of them must "
        "have a budget of its own"
        for a, b in (("first", "second"), ("second", "first"))
    ]
    alone = problems(tmp_path / "alone", **equal_to("first"))
    assert any("a method of a study, and this run is in none" in problem for problem in alone)
    (tmp_path / "noted").mkdir()
    (tmp_path / "noted" / "compute.json").write_text('{"flops": 1e9}')
    assert check(recipe(**equal_to("first")), tmp_path / "noted").run_steps > 0


def test_experts_count_by_the_share_that_a_token_passes(tmp_path: Path) -> None:
    smoke = load_recipe("smoke_expert_parallel", shipped=SHIPPED)
    plan = check(smoke, tmp_path)
    architecture = smoke.stages["base"].from_
    model_infos, _ = read_model_infos(resolve(smoke), {name: TASKS[str(d.task)] for name, d in smoke.domains.items()})
    size = len(model_infos["student.model"].tokenizer)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mimo_v2_flash", **architecture.config, vocab_size=size)  # pyright: ignore
    )
    total = sum(p.numel() for p in model.parameters())
    # Two of three layers are mixtures of 4 experts, each of a gate, an up and a down projection of 32 x 32.
    routed = 2 * 4 * 3 * 32 * 32
    student = plan.models[-1]
    assert (student.parameters, student.active_parameters) == (total, total - routed // 2)
    assert model_infos["student.model"].routed_parameters == pytest.approx(routed)
    assert next(p.count for p in plan.processes if p.name == "rank of the student") == 2


def test_all_groups_of_problems_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = problems(
        tmp_path / "file" / "run",
        teachers={"math": {"model": "./nowhere"}, "idle": {"model": "stage:math"}},
        rollout={"max_new_tokens": 500},
    )
    for told in ("`teachers.idle`: no domain uses", "no checkpoint at ./nowhere", "beyond the context", "is a file"):
        assert sum(told in problem for problem in found) == 1, (told, found)


# ---- models


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "lama"}, "`stages.base.from`: transformers has no architecture 'lama'; did you mean 'llama'"),
        ({"config": {"hidden_siz": 8}}, "`config.hidden_siz` is no key of LlamaConfig; did you mean `hidden_size`"),
        ({"config": {"vocab_size": 8}}, "`config.vocab_size` is decided by the tokenizer"),
        ({"config": {"hidden_size": "eight"}}, "LlamaConfig refuses this `config`"),
        (
            {"config": {**CONFIG, "num_key_value_heads": 3}},
            "fails on its first training step of 8 tokens: it raises RuntimeError",
        ),
        ({"architecture": "bert", "config": BERT}, "bert reads a text in both directions"),
        ({"config": {**CONFIG, "max_position_embeddings": 40}}, "beyond the context of 40 tokens"),
    ],
)
def test_a_wrong_architecture_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    found = problems(tmp_path, stages=base(**changes))
    assert any(told in problem for problem in found), found


def engine_problems(out: Path, engine: dict[str, int], architecture: str = "mimo_v2_flash") -> list[str]:
    mixture = {**CONFIG, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    config = {**mixture, "head_dim": 8, "v_head_dim": 8, "num_hidden_layers": 2}
    stages = base() if architecture == "llama" else base(architecture=architecture, config=config)
    return problems(out, stages=stages, student={"model": "stage:base", "engine": engine})


def test_expert_parallelism_must_divide_experts_and_ranks(tmp_path: Path) -> None:
    (found,) = engine_problems(tmp_path, {"ranks": 3, "expert_parallel": 3})
    assert "`student.engine`" in found
    assert "does not divide the 4 experts" in found
    (found,) = engine_problems(tmp_path, {"ranks": 3, "expert_parallel": 2})
    assert "does not divide the engine's 3 ranks" in found
    (found,) = engine_problems(tmp_path, {"ranks": 2, "expert_parallel": 2}, "llama")
    assert "llama has no experts" in found


def test_a_checkpoint_that_is_not_whole_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    given = {"teachers": {"math": {"model": str(folder)}}, "stages": {"base": tree()["stages"]["base"]}}
    assert any("holds no config.json" in problem for problem in problems(tmp_path / "run", **given))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert any("holds no weights" in problem for problem in problems(tmp_path / "run", **given))
    (folder / "model.safetensors").write_bytes(b"")
    assert any("tokenizer" in problem and str(folder) in problem for problem in problems(tmp_path / "run", **given))


def test_a_checkpoint_without_a_weight_or_an_end_of_answers_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("arithmetic")
    given = {"student": {"model": save_model(tmp_path / "model", tokenizer)}, "stages": {}}
    given["teachers"] = {"math": {"model": str(tmp_path / "model")}}
    check(recipe(**given), tmp_path / "run")
    tokenizer.eos_token = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(tmp_path / "model")
    (found,) = problems(tmp_path / "run", **given)
    assert "`student.model`: the tokenizer in" in found
    assert "has no EOS token" in found
    save_model(tmp_path / "model", tokenizer_of("arithmetic"), num_hidden_layers=1)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIG, "model_type": "llama", "vocab_size": 70}))
    (found,) = problems(tmp_path / "run", **given)
    assert "weights of other shapes than its config.json says" in found


def test_a_rate_for_a_bias_that_no_router_has_is_refused(tmp_path: Path) -> None:
    stages = tree()["stages"] | {"math": {"from": "stage:base", "engine": {"expert_bias_rate": 1e-3}}}
    (found,) = problems(tmp_path, stages=stages)
    assert "`stages.math.engine.expert_bias_rate` is set and would change nothing (no router of llama" in found


def test_a_folder_written_without_its_dot_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "math").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = problems(tmp_path / "run", teachers={"math": {"model": "models/math"}})
    assert any("a folder of that name is here; write ./models/math" in problem for problem in found)


def test_a_name_that_the_hub_cannot_have_is_refused_without_asking_it(tmp_path: Path) -> None:
    found = problems(tmp_path, teachers={"math": {"model": "a/b/c"}})
    assert any("'a/b/c' is neither `stage:NAME`" in problem for problem in found)


def test_a_hub_model_that_is_not_there_is_named_within_seconds(tmp_path: Path) -> None:
    (found,) = [p for p in problems(tmp_path, teachers={"math": {"model": "mopd-tests/nowhere"}}) if "Hub" in p]
    assert "`teachers.math.model`" in found
    assert "'mopd-tests/nowhere'" in found  # whether the Hub says so, or cannot be reached


# ---- teachers and their tokenizers


def test_a_teacher_of_another_tokenizer_is_refused_whatever_its_size(tmp_path: Path) -> None:
    ours, theirs = tokenizer_of("arithmetic", "list_programs"), tokenizer_of("ordering", "list_programs")
    assert len(ours) == len(theirs)  # the size tells nothing
    student, teacher = save_model(tmp_path / "student", ours), save_model(tmp_path / "teacher", theirs)
    given = {"student": {"model": student}, "stages": {}}
    check(recipe(**given, teachers={"math": {"model": student}}), tmp_path / "run")
    (found,) = problems(tmp_path / "run", **given, teachers={"math": {"model": teacher}})
    assert "`teachers.math`" in found
    assert teacher in found
    assert "ids differ" in found


def test_a_teacher_from_another_base_is_refused(tmp_path: Path) -> None:
    stages = {**base(), "math": {"from": {**tree()["stages"]["base"]["from"], "vocabulary": 60}}}
    domains = {"code": {"task": "list_programs", "teacher": "math"}}  # whose words give merges to differ in
    (found,) = problems(tmp_path, stages=stages, domains=domains)
    assert "made from scratch by `stages.math.from`" in found


def test_a_support_that_is_the_whole_vocabulary_is_refused(tmp_path: Path) -> None:
    size = len(tokenizer_of("arithmetic", vocabulary=100))
    loss = {"estimator": "topk_reverse_kl", "k": size - 3}  # <pad>, <eos> and <unk> are forced
    (told,) = problems(tmp_path, loss=loss)
    assert f"`loss.k` is {size - 3}, and with 3 control tokens that is the student's whole output head" in told
    check(recipe(loss={**loss, "k": size - 4}), tmp_path)
    (told,) = problems(tmp_path, loss={**loss, "k": size // 2, "support": "union"})
    assert f"`loss.k` is {size // 2} for each of the two, and with 3 control tokens" in told


def test_special_tokens_and_chat_templates_are_compared() -> None:
    ours = tokenizer_of("arithmetic")
    theirs = PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, pad_token="<pad>", eos_token="<unk>")  # pyright: ignore
    assert [problem.split("'")[0] for problem in compare_tokenizers(theirs, ours)] == [
        "has the eos_token ",
        "has the unk_token None, the student",
    ]
    assert compare_tokenizers(ours, ours) == []
    talking = tokenizer_of("arithmetic")
    talking.chat_template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    (found,) = compare_tokenizers(talking, ours)
    assert "'2+2=;4;'" in found
    same_words = tokenizer_of("arithmetic")
    same_words.chat_template = "{%- for message in messages -%}{{ message['content'] + ';' }}{%- endfor -%}"
    assert compare_tokenizers(talking, same_words) == []  # other templates, the same rendering


TALK = "{% for m in messages %}{{ m.content }};{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (TALK + "{% if add_generation_prompt %}>{% endif %}", "a question that waits for its answer as '2+2=;>'"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TALK, "(refused: no)"),
        ("{% if messages | length > 2 %}{{ messages | length }}{% endif %}" + TALK, "a second question as '3"),
    ],
)
def test_templates_are_compared_on_several_conversations(template: str, told: str) -> None:
    ours, theirs = tokenizer_of("arithmetic"), tokenizer_of("arithmetic")
    ours.chat_template, theirs.chat_template = TALK, template
    (found,) = compare_tokenizers(theirs, ours)
    assert told in found


def test_added_tokens_are_compared_with_their_properties() -> None:
    ours, theirs, plain = (tokenizer_of("arithmetic") for _ in range(3))
    ours.add_tokens([AddedToken("<think>", special=False)])
    theirs.add_tokens([AddedToken("<think>", special=True, lstrip=True)])
    (found,) = compare_tokenizers(theirs, ours)
    assert "'<think>' has special True, the student's False" in found
    assert "has lstrip True, the student's False" in found
    assert "has 26 tokens, the student's 27" in compare_tokenizers(plain, ours)[0]


def test_a_head_that_is_padded_fits_and_one_that_ends_before_the_tokenizer_does_not() -> None:
    config = AutoConfig.for_model("llama", **CONFIG, vocab_size=128)
    assert compare_heads(config, config, full=True, tokens=120) == []
    larger = AutoConfig.for_model("llama", **CONFIG, vocab_size=192)  # as Qwen2.5's 0.5B and 7B
    assert compare_heads(larger, config, full=True, tokens=120) == compare_heads(config, larger, full=True, tokens=120)
    assert compare_heads(larger, config, full=True, tokens=120) == []
    (found,) = compare_heads(config, config, full=False, tokens=130)
    assert found == "has an output head of 128 tokens, and the tokenizer has ids up to 129"


@pytest.mark.parametrize(("theirs", "ours", "full", "fits"), [(8, 8, True, True), (9, 8, True, False),
                                                              (9, 8, False, True), (7, 8, False, False)])  # fmt: skip
def test_heads_must_be_equal_for_whole_distributions(theirs: int, ours: int, full: bool, fits: bool) -> None:
    configs = [AutoConfig.for_model("llama", **CONFIG, vocab_size=size) for size in (theirs, ours)]
    assert (compare_heads(*configs, full=full) == []) is fits

"""Checks of a recipe by itself: routes, stages, methods, rewards, leaves that would do nothing."""

from __future__ import annotations

from typing import Any

import pytest
from check_kit import recipe, routes_problems, tree, warnings

from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import Recipe
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.sources import chain, origin
from mopd.recipes.resolve.stages import stage_domains

TASKS = ("arithmetic", "list_programs", "ordering")
REWARDED = {"estimator": "policy_gradient", "reward_weight": 1.0}
MATH = {"task": "arithmetic", "teacher": "math"}


def problems(**changes: Any) -> list[str]:
    return routes_problems(recipe(**changes))


def test_a_sound_recipe_has_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    "estimator", [name for name, spec in LOSSES.items() if spec.payload in ("full", "topk", "sampled")]
)
def test_every_estimator_of_the_teachers_is_mopds(estimator: str) -> None:
    assert problems(loss={"estimator": estimator}) == []
    supervised = {"method": "supervised", "loss": {"estimator": estimator}}
    assert any("method 'supervised' does not use" in problem for problem in problems(**supervised))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"domains": {"math": {**MATH, "task": "arithmetics"}}}, "no task is called 'arithmetics'; did you mean"),
        ({"domains": {"math": {**MATH, "teacher": "mth"}}}, "no teacher 'mth' is declared under `teachers`; did you"),
        ({"domains": {"math": MATH, "more": {"task": "ordering"}}}, "`domains.more` has neither teacher nor reward"),
        ({"teachers": {"math": {"model": "./a"}, "idle": {"model": "./b"}}}, "`teachers.idle`: no domain uses"),
        ({"domains": {"math": {"task": "arithmetic", "evaluate_only": True}}}, "no domain is trained"),
        ({"teachers": {"math": {"model": "self"}}}, "`teachers`: every one is self, so the student would be held"),
        (
            {"teachers": {"math": {"model": "self"}}, "student": {"model": tree()["stages"]["base"]["from"]}},
            "`teachers.math.model` is self, and the student is made from scratch",
        ),
        ({"loss": {"estimator": "nll"}}, "`loss.estimator` is 'nll', which method 'mopd' does not use"),
        ({"domains": {"math": {**MATH, "reward": True}}}, "`domains.math.reward` is true, and the loss gives"),
        (
            {"loss": {"estimator": "k2"}, "domains": {"math": {**MATH, "reward": True}}},
            "`domains.math.reward` is true, and the loss gives",
        ),
        ({"run": {"lag": 1, "steps": 1}}, "`run.lag` is 1, and the run has 1 steps"),
        (
            {"run": {"lag": 1}, "method": "supervised", "loss": {"estimator": "nll"}},
            "`run.lag` is 1, and in method supervised the student writes no rollouts",
        ),
        ({"run": {"lag": 2}, "method": "merge"}, "`run.lag` is 2, and in method merge the student writes no rollouts"),
        ({"run": {"lag": 1}, "method": "draft_heads", "mtp": {"heads": 1}}, "moves no weight that writes rollouts"),
        (
            {"run": {"stale": {}}, "method": "expert_iteration", "loss": {"estimator": "nll"}},
            "`run.stale` is set, and nll knows no ratio",
        ),
        ({"run": {"stale": {}}, "method": "off_policy", "loss": {"estimator": "nll"}}, "writes no rollouts that could"),
        ({"run": {"stale": {}}, "rollout": {"off_policy": 0.5}}, "teachers write a part of the rollouts"),
        (
            {"run": {"stale": {"action": "mask"}}, "loss": {"estimator": "k2"}},
            "`run.stale.action` is mask, and `loss.gate` of k2 leaves out single tokens already",
        ),
        ({"run": {"plateau": {}}}, "laid out over all of `run.steps`; set `student.optimizer.schedule` to wsd"),
        ({"run": {"plateau": {"evaluations": 9}, "steps": 100}}, "100 steps have no more at one in 20"),
        ({"prompt_rule": "gap_following"}, "`prompt_rule` is gap_following, and one domain has all prompts"),
        ({"loss": REWARDED}, "`loss.reward_weight` is 1, and no domain has `reward: true`"),
        (
            {"student": {"model": "stage:bass"}},
            "`student.model`: no stage 'bass' is declared under `stages`; did",
        ),
        ({"teachers": {"math": {"model": "stage:mth"}}}, "`teachers.math.model`: no stage 'mth'"),
        (
            {"stages": {"base": {"from": "stage:nowhere"}, "math": {"from": "stage:base"}}},
            "`stages.base.from`: no stage",
        ),
        ({"stages": {"base": {"from": "stage:math"}, "math": {"from": "stage:base"}}}, "leads back to itself: base is"),
        ({"stages": {"base": {"from": "stage:base"}, "math": {"from": "stage:base"}}}, "`stages.base.from` leads back"),
        ({"teachers": {"math": {"model": "stage:base"}}}, "`stages.math`: neither the student nor a teacher"),
        (
            {"stages": {**tree()["stages"], "math": {"from": "stage:base", "shares": {"mth": 0.5}}}},
            "`stages.math.shares`: the stage trains no domain 'mth'; did you mean `math`?",
        ),
    ],
)
def test_a_wrong_route_is_named(changes: dict[str, Any], told: str) -> None:
    found = problems(**changes)
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize(
    ("domains", "told"),
    [
        (["maths"], "no domain 'maths' is declared under `domains`; did you mean `math`"),
        ([], "`stages.base.domains` is empty"),
        (["math", "math"], "names 'math' 2 times"),
    ],
)
def test_a_stage_with_wrong_domains_is_named(domains: list[str], told: str) -> None:
    stages = tree()["stages"]
    stages["base"] = {**stages["base"], "domains": domains}
    measured = {"math": MATH, "more": {"task": "ordering", "evaluate_only": True}}
    assert any(told in problem for problem in problems(stages=stages, domains=measured))


def test_a_base_may_know_domains_that_the_run_only_measures() -> None:
    """A student of one teacher, and what that does to the rest: only a stage that names such a domain trains on it."""
    measured = {"math": MATH, "more": {"task": "ordering", "evaluate_only": True}}
    stages = tree()["stages"]
    assert stage_domains(recipe().stages["base"], recipe(domains=measured).trained_domains) == ("math",)
    stages["base"] = {**stages["base"], "domains": ["math", "more"]}
    assert problems(stages=stages, domains=measured) == []
    both = recipe(stages=stages, domains=measured)
    assert stage_domains(both.stages["base"], both.trained_domains) == ("math", "more")


def test_every_update_needs_a_rollout_of_every_domain() -> None:
    student = {"model": "stage:base", "updates_per_step": 5}
    (found,) = problems(student=student)
    assert "`student.updates_per_step` is 5, and domain 'math' has 4 rollouts a step" in found
    assert problems(student=student, rollout={"samples_per_prompt": 2}) == []
    supervised = {"method": "supervised", "loss": {"estimator": "nll"}, "teachers": {}}
    alone = {"domains": {"math": {"task": "arithmetic", "prompts": 4}}, "stages": {"base": tree()["stages"]["base"]}}
    (found,) = problems(student=student, **supervised, **alone)  # which has no samples
    assert "domain 'math' has 4 rollouts" in found
    stages = tree()["stages"] | {"math": {"from": "stage:base", "prompts": 2, "updates_per_step": 3}}
    (found,) = problems(stages=stages)
    assert "`stages.math.updates_per_step` is 3, and `stages.math.prompts` is 2" in found


def test_a_warm_up_that_never_ends_is_refused() -> None:
    student = {"model": "stage:base", "optimizer": {"warmup_steps": 20}}
    (found,) = problems(student=student, run={"steps": 10})  # of 2 updates each
    assert "`student.optimizer.warmup_steps` is 20, and the training has 20 optimizer steps" in found
    assert problems(student=student, run={"steps": 11}) == []
    asked = {"from": "stage:base", "steps": 20, "optimizer": {"warmup_steps": 20}}
    (found,) = problems(stages=tree()["stages"] | {"math": asked})
    assert "`stages.math.optimizer.warmup_steps` is 20" in found
    assert problems(run={"steps": 1}) == [], "what nobody asked for is short enough"


def test_a_cycle_is_told_once() -> None:
    stages = {"base": {"from": "stage:math"}, "math": {"from": "stage:base"}}
    assert sum("leads back to itself" in problem for problem in problems(stages=stages)) == 1


def test_a_reward_needs_a_group_of_samples() -> None:
    rewarded = {"math": {**MATH, "reward": True}}
    alone = problems(domains=rewarded, loss=REWARDED)
    assert len(alone) == 1
    assert "`rollout.samples_per_prompt` is 1" in alone[0]
    assert problems(domains=rewarded, loss=REWARDED, rollout={"samples_per_prompt": 2}) == []


def test_a_supervised_recipe_takes_nll_and_no_teachers() -> None:
    supervised = {"method": "supervised", "loss": {"estimator": "nll"}}
    sound = {"domains": {"math": {"task": "arithmetic"}}, "teachers": {}, "stages": {"base": tree()["stages"]["base"]}}
    assert problems(**supervised, **sound) == []
    assert any("`domains.math` has a teacher, which method" in problem for problem in problems(**supervised))


def by_reward(method: str, **changes: Any) -> dict[str, Any]:
    """A sound recipe of a method without teachers, and what is changed in it."""
    loss = {"estimator": "nll"} if method == "expert_iteration" else REWARDED
    sound = {"domains": {"math": {"task": "arithmetic", "reward": True}}, "teachers": {}, "loss": loss}
    sound |= {"stages": {"base": tree()["stages"]["base"]}, "rollout": {"samples_per_prompt": 4}}
    return {"method": method, **sound, **changes}


@pytest.mark.parametrize("method", ["mix_rl", "expert_iteration"])
def test_methods_by_reward_take_rewards_and_no_teachers(method: str) -> None:
    assert problems(**by_reward(method)) == []
    ungraded = problems(**by_reward(method, domains={"math": {"task": "arithmetic"}}))
    assert any("`domains.math` has no reward, so nothing teaches it; set `reward: true`" in p for p in ungraded)
    taught = by_reward(method, domains={"math": {**MATH, "reward": True}}, teachers={"math": {"model": "./a"}})
    assert any("`domains.math` has a teacher, which method" in problem for problem in problems(**taught))


def test_off_policy_asks_teachers_to_write_and_nobody_for_rewards() -> None:
    off_policy = {"method": "off_policy", "loss": {"estimator": "nll"}}
    assert problems(**off_policy) == []
    assert any("has no teacher, so" in p for p in problems(**off_policy, domains={"math": {"task": "arithmetic"}}))
    rewarded = problems(**off_policy, domains={"math": {**MATH, "reward": True}})
    assert any("`domains.math.reward` is true, and method 'off_policy' never asks" in problem for problem in rewarded)


def test_supervised_distillation_has_teachers_write_and_grade_whole_distributions() -> None:
    assert problems(method="supervised_distillation", loss={"estimator": "forward_kl"}) == []
    sampled = problems(method="supervised_distillation", loss={"estimator": "k2"})
    assert any("`loss.estimator` is 'k2', which method 'supervised_distillation' does not use" in p for p in sampled)
    shared = problems(method="supervised_distillation", loss={"estimator": "forward_kl"}, share_rule="variance_scaled")
    assert any(
        "reads the gap to the teachers from the student's own draws, and here teachers write" in p for p in shared
    )


def test_rejection_sampling_needs_a_teacher_and_a_verifier_in_every_domain() -> None:
    sound = {"method": "rejection_sampling", "loss": {"estimator": "nll"}, "rollout": {"samples_per_prompt": 4}}
    assert problems(**sound, domains={"math": {**MATH, "reward": True}}) == []
    for lacks, domain in (("reward", MATH), ("teacher", {"task": "arithmetic", "reward": True})):
        found = problems(**sound, domains={"math": domain})
        assert any(
            f"`domains.math` has no {lacks}, and method 'rejection_sampling' learns from what" in p for p in found
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollout": {"off_policy": 0.3}}, None),
        ({"rollout": {"off_policy": 0.3, "off_policy_steps": 20}}, None),
        ({"rollout": {"off_policy_steps": 20}}, "`rollout.off_policy` is 0: teachers answer no prompt"),
        ({"rollout": {"off_policy": 0.3, "off_policy_steps": 0}}, "for 0 steps"),
        ({"rollout": {"off_policy": 0.3}, "loss": {"estimator": "k2"}}, "k2 learns from the student's own draws alone"),
        (
            {"rollout": {"off_policy": 0.3}, "method": "off_policy", "loss": {"estimator": "nll"}},
            "only where the student writes and teachers grade",
        ),
        ({"rollout": {"off_policy": 0.001}}, "is less than one of the 4 prompts of domain 'math'; raise it to 0.25"),
        (
            {
                "rollout": {"off_policy": 0.3},
                "domains": {"math": MATH, "code": {"task": "list_programs", "reward": True}},
            },
            "domain 'code' has no teacher to answer its prompts",
        ),
        ({"rollout": {"off_policy": 0.3}, "domains": {"math": {"environment": "calculator", "teacher": "math"}}}, None),
        ({"rollout": {"off_policy": 0.3},
          "domains": {"math": {"environment": {"program": "true"}, "teacher": "math"}}},
         "domain 'math' is an environment of a program, whose requests only the student answers"),
    ],
)  # fmt: skip
def test_a_part_of_the_prompts_is_answered_by_teachers(changes: dict[str, Any], expected: str | None) -> None:
    found = problems(**{"loss": {"estimator": "full_reverse_kl"}, **changes})
    assert found == [] if expected is None else any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("math", "changes", "expected"),
    [
        ({"environment": "calculator", "prefix": {"teacher": 0.25, "dataset": 0.25, "student": 0.5}}, {}, None),
        ({"environment": "calculator", "prefix": "student"}, {}, None),
        ({"task": "arithmetic", "prefix": "student"}, {}, None),
        ({"task": "arithmetic", "prefix": "teacher"}, {}, "its task asks once, so nothing stands before an answer"),
        ({"environment": "calculator", "turns": 1, "prefix": "dataset"}, {}, "an episode has one turn (`turns`)"),
        ({"environment": "calculator", "prefix": "dataset", "reward": True}, {"loss": {"reward_weight": 0.1}},
         "`domains.math.prefix` is set with `reward: true`, which judges whole episodes"),
        ({"environment": "calculator", "prefix": {"teacher": 0.1, "student": 0.9}}, {},
         "gives teacher 0.1, which is less than one of the 4 prompts; raise it to 0.25"),
        ({"environment": "calculator", "prefix": "teacher"}, {"rollout": {"off_policy": 0.5}},
         "`rollout.off_policy` has teachers write whole episodes; remove one of the two"),
        ({"environment": "calculator", "prefix": "teacher"}, {"method": "off_policy", "loss": {"estimator": "nll"}},
         "only where the student writes and teachers grade (mopd) does it go on"),
        ({"environment": {"program": "true"}, "prefix": "teacher"}, {},
         "domain 'math' is an environment of a program"),
        ({"environment": "calculator"}, {"teachers": {"math": {
            "model": "stage:math", "endpoint": "http://127.0.0.1:1/v1"}}},
         "`teachers.math` is served, and domain 'math' is an environment, in which every model is measured"),
    ],
)  # fmt: skip
def test_a_prefix_is_refused_where_it_could_change_nothing(
    math: dict[str, Any], changes: dict[str, Any], expected: str | None
) -> None:
    changed = {"loss": {"estimator": "full_reverse_kl"}, **changes}
    if "reward_weight" in changed["loss"]:
        changed["loss"] = {"estimator": "policy_gradient", **changed["loss"]}
    found = problems(**changed, domains={"math": {"prompts": 4, "teacher": "math", **math}})
    assert found == [] if expected is None else any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages": {"method": "mix_rl"}}, "`stages.base.samples_per_prompt` is 1: a reward is compared within"),
        (
            {"stages": {"method": "expert_iteration", "samples_per_prompt": 2, "keep_verified": 3}},
            "`stages.base.keep_verified` is 3, and `stages.base.samples_per_prompt` is 2",
        ),
    ],
)
def test_samples_that_say_nothing_are_refused(changes: dict[str, Any], told: str) -> None:
    stages = {**tree()["stages"], "base": {**tree()["stages"]["base"], **changes.get("stages", {})}}
    assert any(told in problem for problem in problems(**{**changes, "stages": stages}))


def samples(**base: Any) -> dict[str, Any]:
    """The stages of the recipe, of which the base has other settings."""
    stages = tree()["stages"]
    return {**stages, "base": {**stages["base"], **base}}


@pytest.mark.parametrize(
    ("changes", "leaf"),
    [
        (
            {"domains": {"math": MATH, "more": {"task": "ordering", "evaluate_only": True, "prompts": 3}}},
            "domains.more.prompts",
        ),
        ({"method": "supervised", "rollout": {"temperature": 0.5}}, "rollout.temperature"),
        ({"domains": {"math": {**MATH, "task": {"path": "./a.jsonl"}, "easy_share": 0.5}}}, "domains.math.easy_share"),
        ({"faults": {"retries": 0, "backoff_seconds": 3.0}}, "faults.backoff_seconds"),
        (
            {
                "domains": {"math": {"task": "arithmetic"}},
                "teachers": {},
                "method": "supervised",
                "faults": {"microbatch_seconds": 9.0},
            },
            "faults.microbatch_seconds",
        ),
        (
            {
                "run": {"parallel_stages": 3},
                "stages": {},
                "student": {"model": "./a"},
                "teachers": {"math": {"model": "./b"}},
            },
            "run.parallel_stages",
        ),
        ({"method": "supervised", "run": {"resident_teachers": 1}}, "run.resident_teachers"),
        ({"method": "off_policy", "run": {"resident_teachers": 1}}, "run.resident_teachers"),
        ({"rollout": {"keep_verified": 2}}, "rollout.keep_verified"),
        ({"stages": {}, "rollout": {"truncated": "zero_reward"}}, "rollout.truncated"),
        ({"method": "supervised", "rollout": {"truncated": "mask"}}, "rollout.truncated"),
        ({"stages": samples(samples_per_prompt=4)}, "stages.base.samples_per_prompt"),
        ({"stages": samples(shares={"math": 0.5})}, "stages.base.shares"),
        ({"stages": samples(method="mix_rl", samples_per_prompt=4, keep_verified=2)}, "stages.base.keep_verified"),
    ],
)
def test_a_leaf_that_changes_nothing_is_a_warning_and_no_problem(changes: dict[str, Any], leaf: str) -> None:
    assert any(f"`{leaf}` is set and changes nothing" in warning for warning in warnings(recipe(**changes)))
    assert not any("changes nothing" in problem for problem in problems(**changes))


def taking_turns(resident: int, **second: Any) -> dict[str, Any]:
    """A recipe's sections with two bases; over one of them there are two teachers."""
    return {
        "domains": {name: {"task": "arithmetic", "teacher": name} for name in ("one", "two", "three")},
        "teachers": {
            "one": {"model": "stage:math"},
            "two": {"model": "stage:base", **second},
            "three": {"model": "stage:math", "adapter": "./lora"},
        },
        "run": {"resident_teachers": resident},
    }


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (taking_turns(2), "`run.resident_teachers` is 2, and the recipe has 2 to hold"),
        (taking_turns(1, endpoint="http://here:8000/v1"), "`run.resident_teachers` is 1, and the recipe has 1 to hold"),
        (taking_turns(1, replicas=2), "`teachers.two.replicas` is 2: with `run.resident_teachers` teachers take turns"),
        (taking_turns(1, gpus=0.5), "`teachers.two.gpus` is 0.5"),
        (taking_turns(1, device="cpu"), "and auto, as 'one' has is needed"),
        (taking_turns(1, resources={"big": 1.0}), "`teachers.two.resources` is"),
    ],
)
def test_teachers_that_cannot_take_turns_are_told_by_their_leaf(sections: dict[str, Any], told: str) -> None:
    assert problems(**taking_turns(1)) == []
    assert any(told in problem for problem in problems(**sections))


def test_a_model_is_followed_to_its_origin() -> None:
    made = recipe().stages
    found = origin(made, "teachers.math.model", "stage:math")
    assert found is not None
    assert (found.where, found.stage) == ("stages.base.from", "base")
    assert list(chain(made, "stage:math")) == ["math", "base"]
    given = origin(made, "student.model", "./here")
    assert given is not None
    assert (given.where, given.source, given.stage) == ("student.model", "./here", None)


def test_an_origin_that_is_nowhere_is_none() -> None:
    circle = Recipe.model_validate(tree(stages={"a": {"from": "stage:b"}, "b": {"from": "stage:a"}}))
    assert origin(circle.stages, "student.model", "stage:a") is None
    assert origin(circle.stages, "student.model", "stage:c") is None


def test_self_is_the_students_own_source() -> None:
    anchored = recipe(
        domains={"math": MATH, "rest": {"task": "ordering", "teacher": "anchor"}},
        teachers={"math": {"model": "stage:math"}, "anchor": {"model": "self"}},
    )
    assert routes_problems(anchored) == []
    assert resolve(anchored).models["teachers.anchor.model"].source == "stage:base" == anchored.student.model
    assert resolve(anchored).models["teachers.math.model"].source == "stage:math"


def test_a_cascade_is_a_chain_of_stages_and_asks_nobody() -> None:
    base = tree()["stages"]["base"]
    chained = {"base": base, "one": {"from": "stage:base", "method": "expert_iteration", "domains": ["math"]}}
    sound: dict[str, Any] = {"method": "cascade", "teachers": {}, "domains": {"math": {"task": "arithmetic"}}}
    sound |= {"student": {"model": "stage:one"}, "stages": chained}
    assert problems(**sound) == []
    unlinked = problems(**{**sound, "student": {"model": "stage:base"}, "stages": {"base": base}})
    assert any("`student.model` names no chain of stages" in problem for problem in unlinked)
    (warning,) = warnings(recipe(**sound, run={"steps": 7}))
    assert warning.startswith("`run.steps` is set and changes nothing")


def test_a_merge_is_of_teachers_and_only_task_arithmetic_has_strengths() -> None:
    merge = {"method": "merge"}
    assert problems(**merge) == []
    assert problems(**merge, merge={"how": "task_arithmetic", "strengths": [0.5]}) == []
    (warning,) = warnings(recipe(**merge, merge={"strengths": [0.5]}))
    assert warning.startswith("`merge.strengths` is set and changes nothing")
    (warning,) = warnings(recipe(merge={"how": "task_arithmetic"}))
    assert warning.startswith("`merge.how` is set and changes nothing")
    assert any("has no teacher, so" in p for p in problems(**merge, domains={"math": {"task": "arithmetic"}}))


def test_a_budget_asks_for_a_rate_that_can_end_whenever() -> None:
    spends = {"run": {"steps": 100, "compute": {"flops": 1e12}}}
    assert any(
        "`run.compute` ends training when it is spent, and the rate of schedule cosine" in p for p in problems(**spends)
    )
    constant = {"student": {"model": "stage:base", "optimizer": {"schedule": "constant"}}}
    assert problems(**spends, **constant) == []

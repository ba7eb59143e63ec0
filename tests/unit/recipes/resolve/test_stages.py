"""Stages: their order, their own recipes, seeds and fingerprints."""

import threading
import time

import pytest
from deadline_kit import patience

from mopd.distill.recipe import Recipe
from mopd.recipes.resolve.stages import (
    finished,
    mark_finished,
    run_stages,
    stage_fingerprint,
    stage_folder,
    stage_recipe,
    stage_seed,
)

ARCHITECTURE = {"architecture": "llama", "config": {"hidden_size": 8}}


def recipe(**changes):
    return Recipe.model_validate(
        {
            "name": "r",
            "student": {"model": "stage:base"},
            "domains": {
                "math": {"task": "arithmetic", "teacher": "math"},
                "code": {"task": "list_programs", "teacher": "code"},
            },
            "teachers": {"math": {"model": "stage:math"}, "code": {"model": "stage:code"}},
            "stages": {
                "math": {"from": "stage:base", "domains": ["math"]},
                "code": {"from": "stage:base", "domains": ["code"]},
                "base": {"from": ARCHITECTURE, "easy_share": 0.5},
            },
            **changes,
        }
    )


def test_a_stage_waits_for_what_it_starts_from_and_others_run_side_by_side():
    began, ended, together = {}, {}, []
    running, lock = set(), threading.Lock()

    def run_one(name):
        with lock:
            began[name] = time.monotonic()
            running.add(name)
            together.append(len(running))
        time.sleep(0.2)
        with lock:
            running.discard(name)
            ended[name] = time.monotonic()

    run_stages(recipe().stages, run_one, parallel=2, stop=lambda: None)
    assert began.keys() == {"base", "math", "code"}
    assert ended["base"] <= min(began["math"], began["code"])
    assert max(together) == 2


def test_what_is_finished_does_not_hold_the_rest_up():
    stages = {name: stage for name, stage in recipe().stages.items() if name != "base"}
    done = []
    run_stages(stages, done.append, parallel=1, stop=lambda: None)
    assert sorted(done) == ["code", "math"]


def test_a_failing_stage_stops_the_others_and_is_raised():
    stopped, started = threading.Event(), []

    def run_one(name):
        started.append(name)
        if name == "math":
            raise ValueError("math broke")
        if name == "code":
            assert stopped.wait(patience(10)), "the other stage was not asked to stop"

    with pytest.raises(ValueError, match="math broke"):
        run_stages(recipe().stages, run_one, parallel=2, stop=stopped.set)
    assert set(started) == {"base", "math", "code"}


def test_a_stage_is_a_run_of_its_own():
    math = stage_recipe(recipe(), "math")
    assert list(math.domains) == ["math"]
    assert math.method == "supervised"
    assert math.loss.estimator == "nll"
    base = stage_recipe(recipe(), "base")
    assert list(base.domains) == ["math", "code"]
    assert base.domains["math"].easy_share == 0.5
    assert len({math.seed, base.seed, recipe().seed}) == 3, "stages would draw the same prompts"
    assert stage_seed(0, "math") != stage_seed(1, "math")


def test_a_domain_weighs_in_a_stage_what_its_shares_say():
    stages = recipe().model_dump(by_alias=True)["stages"]
    shared = recipe(stages={**stages, "base": {**stages["base"], "shares": {"code": 0.4}}})
    base = stage_recipe(shared, "base")
    assert {name: domain.share for name, domain in base.domains.items()} == {"math": 1.0, "code": 0.4}
    assert stage_fingerprint(shared, "base") != stage_fingerprint(recipe(), "base")


def test_a_stage_trains_on_what_the_recipe_trains_on():
    domains = recipe().model_dump()["domains"] | {"more": {"task": "ordering", "evaluate_only": True}}
    assert list(stage_recipe(recipe(domains=domains), "base").domains) == ["math", "code"]


def test_fingerprints_follow_what_a_stage_depends_on_and_nothing_else():
    plain = {name: stage_fingerprint(recipe(), name) for name in ("base", "math", "code")}
    longer = recipe(run={"steps": 999})
    assert {name: stage_fingerprint(longer, name) for name in plain} == plain
    # Methods of a study differ in all of this, and share their base and specialists.
    written = recipe(name="other", rollout={"samples_per_prompt": 8, "max_new_tokens": 9}, evaluate={"test_prompts": 3})
    assert {name: stage_fingerprint(written, name) for name in plain} == plain
    assert stage_fingerprint(recipe(rollout={"temperature": 0.7}), "base") != plain["base"]
    stages = recipe().model_dump(by_alias=True)["stages"]
    other_base = recipe(stages={**stages, "base": {**stages["base"], "steps": 7}})
    assert all(stage_fingerprint(other_base, name) != plain[name] for name in plain), "math starts from base"
    other_math = recipe(stages={**stages, "math": {**stages["math"], "steps": 7}})
    changed = {name for name in plain if stage_fingerprint(other_math, name) != plain[name]}
    assert changed == {"math"}


def test_runs_of_other_seeds_share_stages_of_one_seed():
    plain = {name: stage_fingerprint(recipe(seed=3), name) for name in ("base", "math", "code")}
    shared = recipe(seed=4, stages_seed=3)
    assert {name: stage_fingerprint(shared, name) for name in plain} == plain
    assert stage_recipe(shared, "math") == stage_recipe(recipe(seed=3), "math")
    assert all(stage_fingerprint(recipe(seed=4), name) != plain[name] for name in plain)


def test_a_result_counts_only_for_the_recipe_that_made_it(tmp_path):
    stage_folder(tmp_path, "base").mkdir(parents=True)
    assert not finished(tmp_path, "base", stage_fingerprint(recipe(), "base"))
    mark_finished(tmp_path, "base", stage_fingerprint(recipe(), "base"), steps=1)
    assert finished(tmp_path, "base", stage_fingerprint(recipe(), "base"))
    assert not finished(tmp_path, "base", stage_fingerprint(recipe(seed=1), "base"))

"""Teachers: scores against the model's own forward, one rollout at a time; routing; broken answers are caught."""

import dataclasses

import numpy as np
import pytest
import ray
import torch
from student_kit import VOCABULARY, make_model, make_rollout
from transformers import AutoModelForCausalLM

from distill.topk import Support
from distill.types import Full, NonFinite, Sampled, TopK, WorldError
from teachers.model import TeacherModel
from teachers.pool import TeacherPool, TeacherSpec, check_score


def rollouts(n=9, domains=("code", "math")):
    rng = np.random.default_rng(0)
    return [
        make_rollout(
            rng, i, domains[i % len(domains)], prompt=int(rng.integers(1, 6)), completion=int(rng.integers(1, 9))
        )
        for i in range(n)
    ]


def naive_logprobs(model, token_ids, temperature):
    """Row t from a forward over the tokens before t alone: a wrong shift or padding that leaks would show."""
    rows = [np.full(VOCABULARY, np.nan)]
    for t in range(1, len(token_ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([token_ids[:t].tolist()])).logits[0, -1].double()
        rows.append((logits / temperature).log_softmax(-1).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [8, 40, 4096])
def test_scores_equal_forwards_over_each_prefix(tmp_path, temperature, budget):
    path = make_model(tmp_path)
    teacher = TeacherModel(path, device="cpu", dtype="float32", temperature=temperature, microbatch_tokens=budget)
    asked = [r.token_ids for r in rollouts()]
    full, sampled = teacher.score(asked, "full"), teacher.score(asked, "sampled")
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    for ids, row_TV, row_T in zip(asked, full, sampled, strict=True):
        expected_TV = naive_logprobs(reference, ids, temperature)
        assert isinstance(row_TV, Full)
        assert isinstance(row_T, Sampled)
        assert row_TV.logprobs_TV.shape == expected_TV.shape
        for t in range(1, len(ids)):
            np.testing.assert_allclose(row_TV.logprobs_TV[t], expected_TV[t], atol=2e-5)
            assert row_T.logprobs_T[t] == pytest.approx(expected_TV[t, ids[t]], abs=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [8, 4096])
def test_a_topk_score_is_the_head_of_the_whole_one_with_what_is_left(tmp_path, temperature, budget):
    path, forced = make_model(tmp_path), (0, 1)
    settings = {"temperature": temperature, "microbatch_tokens": budget, "support": Support(5, forced)}
    teacher = TeacherModel(path, device="cpu", dtype="float32", **settings)
    asked = [r.token_ids for r in rollouts()]
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    for ids, said in zip(asked, teacher.score(asked, "topk"), strict=True):
        assert isinstance(said, TopK)
        assert said.ids_TK.shape == said.logprobs_TK.shape == (len(ids), 7)
        assert said.ids_TK.dtype == np.int32
        expected_TV = naive_logprobs(reference, ids, temperature)
        for t in range(1, len(ids)):
            free = [v for v in np.argsort(-expected_TV[t]).tolist() if v not in forced]
            assert set(said.ids_TK[t].tolist()) == {*free[:5], *forced}
            np.testing.assert_allclose(said.logprobs_TK[t], expected_TV[t, said.ids_TK[t]], atol=2e-5)
            assert said.rest_T[t] == pytest.approx(np.log(np.exp(expected_TV[t, free[5:]]).sum()), abs=2e-5)
            assert said.sampled_T[t] == pytest.approx(expected_TV[t, ids[t]], abs=2e-5)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    paths = {"a": make_model(folder, seed=1), "b": make_model(folder, seed=2)}
    specs = {name: TeacherSpec(path, "cpu", "float32", 1.0, 256, 0.0) for name, path in paths.items()}
    pool = TeacherPool(specs, routes={"code": {"a": 1.0}, "math": {"a": 0.25, "b": 0.75}}, payload="full")
    yield pool, paths
    pool.close()


def test_every_rollout_goes_to_its_domains_teachers(pool):
    pool, paths = pool
    assert pool.wait_until_ready() == {"a": VOCABULARY, "b": VOCABULARY}
    batch = rollouts()
    scored = pool.score([batch[:4], batch[4:5], [], batch[5:]])
    local = {
        name: TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=4096)
        for name, path in paths.items()
    }
    assert [s.rollout.index for s in scored] == [r.index for r in batch]
    for one in scored:
        expected = {"code": {"a": 1.0}, "math": {"a": 0.25, "b": 0.75}}[one.rollout.domain]
        assert {score.teacher: weight for weight, score in one.scores} == expected
        for _, score in one.scores:
            (alone,) = local[score.teacher].score([one.rollout.token_ids], "full")
            np.testing.assert_allclose(
                score.payload.logprobs_TV[one.rollout.loss_mask],
                alone.logprobs_TV[one.rollout.loss_mask],
                atol=1e-5,
            )


def test_a_pool_ships_the_support_that_it_was_given(cluster, tmp_path):
    path, support = make_model(tmp_path), Support(3, (1,))
    specs = {"a": TeacherSpec(path, "cpu", "float32", 1.0, 256, 0.0, support=support)}
    pool = TeacherPool(specs, routes={"code": {"a": 1.0}}, payload="topk")
    batch = rollouts(4, domains=("code",))
    local = TeacherModel(
        path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=256, support=support
    ).score([r.token_ids for r in batch], "topk")
    for one, alone in zip(pool.score([batch]), local, strict=True):
        ((_, score),) = one.scores
        for name in ("ids_TK", "logprobs_TK", "rest_T", "sampled_T"):
            theirs, ours = getattr(score.payload, name), getattr(alone, name)
            np.testing.assert_allclose(theirs[one.rollout.loss_mask], ours[one.rollout.loss_mask], atol=1e-5)
    pool.close()


def test_a_domain_without_a_route_is_an_error(pool):
    stray = rollouts(1, domains=("poetry",))
    with pytest.raises(KeyError, match="poetry"):
        pool[0].score([stray])


def test_a_dead_teacher_is_named(cluster, tmp_path):
    spec = TeacherSpec(make_model(tmp_path), "cpu", "float32", 1.0, 256, 0.0)
    pool = TeacherPool({"math": spec}, routes={"math": {"math": 1.0}}, payload="sampled")
    pool.wait_until_ready()
    ray.kill(pool._actors["math"])
    with pytest.raises(WorldError, match="teacher 'math' failed"):
        pool.score([rollouts(2, domains=("math",))])


def test_a_teacher_that_cannot_be_loaded_is_named(cluster, tmp_path):
    spec = TeacherSpec(str(tmp_path / "nothing"), "cpu", "float32", 1.0, 256, 0.0)
    pool = TeacherPool({"math": spec}, routes={"math": {"math": 1.0}}, payload="sampled")
    with pytest.raises(WorldError, match="teacher 'math'"):
        pool.wait_until_ready()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_scores_name_teacher_domain_and_step(value):
    (rollout,) = rollouts(1, domains=("math",))
    rollout = dataclasses.replace(rollout, version=7)
    logprobs = np.full((len(rollout.token_ids), 4), -1.0, dtype=np.float32)
    logprobs[0] = np.nan  # row 0 says nothing, and may hold anything
    check_score("euler", rollout, Full(logprobs))
    logprobs[-1, 2] = value
    with pytest.raises(NonFinite, match=r"'euler'.*domain 'math', step 8"):
        check_score("euler", rollout, Full(logprobs))


@pytest.mark.parametrize(
    ("part", "value", "sound"),
    [
        ("logprobs_TK", -np.inf, False),
        ("logprobs_TK", np.nan, False),
        ("sampled_T", -np.inf, False),
        ("rest_T", np.nan, False),
        ("rest_T", np.inf, False),
        ("rest_T", -np.inf, True),
        ("rest_T", -1.0, True),
    ],
)
def test_a_broken_part_of_a_topk_score_is_caught_and_an_empty_rest_is_sound(part, value, sound):
    (rollout,) = rollouts(1)
    n = len(rollout.token_ids)
    said = TopK(np.zeros((n, 2), np.int32), np.full((n, 2), -1, np.float32), *np.full((2, n), -1, np.float32))
    getattr(said, part)[0] = np.nan  # row 0 says nothing, and may hold anything
    getattr(said, part)[-1] = value
    if sound:
        check_score("euler", rollout, said)
    else:
        with pytest.raises(NonFinite, match="'euler' gave NaN or infinity at 1 of"):
            check_score("euler", rollout, said)


@pytest.mark.parametrize("payload", [Full(np.zeros((3, 4), np.float32)), Sampled(np.full(3, np.nan, np.float32))])
def test_a_rollout_without_trained_tokens_asks_nothing_of_its_score(payload):
    (rollout,) = rollouts(1)
    prompt = dataclasses.replace(rollout.prompt, token_ids=(5, 6, 7))
    ids, nothing = np.array([5, 6, 7], np.int32), np.zeros(3, np.float32)
    bare = dataclasses.replace(
        rollout, prompt=prompt, token_ids=ids, loss_mask=nothing.astype(bool), sampler_logprobs=nothing
    )
    check_score("euler", bare, payload)


def test_a_score_of_other_length_is_refused():
    (rollout,) = rollouts(1)
    with pytest.raises(WorldError, match="scored 1 positions"):
        check_score("euler", rollout, Sampled(np.zeros(1, np.float32)))

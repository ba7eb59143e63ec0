"""Teachers: scores against the model's own forward, one rollout at a time; routing; broken answers are caught."""

import dataclasses
import os
import shutil
import signal

import numpy as np
import psutil
import pytest
import ray
import torch
from deadline_kit import patience
from student_kit import VOCABULARY, make_model, make_rollout
from transformers import AutoModelForCausalLM

from mopd.distill.models.load import load_model
from mopd.distill.payloads import Support
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Full, GradingFailed, NonFinite, Sampled, TopK
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel, microbatches
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions


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
    for ids, payload in zip(asked, teacher.score(asked, "topk"), strict=True):
        assert isinstance(payload, TopK)
        assert payload.ids_TK.shape == payload.logprobs_TK.shape == (len(ids), 7)
        assert payload.ids_TK.dtype == np.int32
        expected_TV = naive_logprobs(reference, ids, temperature)
        for t in range(1, len(ids)):
            free = [v for v in np.argsort(-expected_TV[t]).tolist() if v not in forced]
            assert set(payload.ids_TK[t].tolist()) == {*free[:5], *forced}
            np.testing.assert_allclose(payload.logprobs_TK[t], expected_TV[t, payload.ids_TK[t]], atol=2e-5)
            assert payload.rest_T[t] == pytest.approx(np.log(np.exp(expected_TV[t, free[5:]]).sum()), abs=2e-5)
            assert payload.sampled_T[t] == pytest.approx(expected_TV[t, ids[t]], abs=2e-5)


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
def test_microbatches_hold_every_rollout_once_within_their_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 20, 50).tolist()
    taken = microbatches(lengths, budget)
    assert sorted(i for members in taken for i in members) == list(range(50))
    assert all(len(members) == 1 or len(members) * max(lengths[i] for i in members) <= budget for members in taken)
    assert [lengths[i] for members in taken for i in members] == sorted(lengths, reverse=True)
    assert microbatches([], budget) == []


def make_pool(paths, *, routes=None, payload="full", budget=40, replicas=None, say=print, **faults):
    """Teachers of the checkpoints at ``paths``, each of the domain of its own name where no routes are given."""
    specs = {
        name: TeacherSpec(
            Checkpoint(path, "cpu", "float32"), Conditions(1.0, budget), 0.0, (replicas or {}).get(name, 1)
        )
        for name, path in paths.items()
    }
    routes = {name: {name: 1.0} for name in paths} if routes is None else routes
    policy = FaultRecipe(**{"backoff_seconds": 0.0, **faults})
    return TeacherPool(specs, routes=routes, payload=payload, faults=policy, say=say)


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    paths = {"a": make_model(folder, seed=1), "b": make_model(folder, "qwen3_moe", seed=2)}
    routes = {"code": {"a": 1.0}, "math": {"a": 0.25, "b": 0.75}}
    messages = []
    pool = make_pool(paths, routes=routes, say=messages.append, microbatch_seconds=patience(8.0))
    yield pool, paths, messages
    pool.close()


def test_every_rollout_goes_to_its_domains_teachers(pool):
    pool, paths, _ = pool
    assert pool.wait_until_ready() == {"a": VOCABULARY, "b": VOCABULARY}
    batch = rollouts()
    scored = pool.score([batch[:4], batch[4:5], [], batch[5:]])
    local = {
        name: TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=4096)
        for name, path in paths.items()
    }
    assert [s.rollout.index for s in scored] == [r.index for r in batch]
    for graded in scored:
        expected = {"code": {"a": 1.0}, "math": {"a": 0.25, "b": 0.75}}[graded.rollout.domain]
        assert {score.teacher: weight for weight, score in graded.scores} == expected
        for _, score in graded.scores:
            (alone,) = local[score.teacher].score([graded.rollout.token_ids], "full")
            expected_NV = alone.logprobs_TV[graded.rollout.loss_mask]
            np.testing.assert_allclose(score.payload.logprobs_TV, expected_NV, atol=1e-5)


@pytest.mark.parametrize("whose", ["teacher", "union"])
def test_a_pool_ships_the_support_that_it_was_given(cluster, tmp_path, whose):
    path, support = make_model(tmp_path), Support(3, (1,), whose)
    specs = {"a": TeacherSpec(Checkpoint(path, "cpu", "float32"), Conditions(1.0, 256, support), 0.0, 1)}
    pool = TeacherPool(specs, routes={"code": {"a": 1.0}}, payload="topk", faults=FaultRecipe(), say=print)
    rng = np.random.default_rng(1)
    batch = [
        dataclasses.replace(rollout, support_ids=np.array([[*rng.permutation(np.arange(2, VOCABULARY))[:3], 1]
                                                       for _ in rollout.token_ids], np.int32))
        for rollout in rollouts(4, domains=("code",))
    ]  # fmt: skip
    given = [rollout.support_ids for rollout in batch]
    local = TeacherModel(
        path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=256, support=support
    ).score([r.token_ids for r in batch], "topk", None, given)
    for graded, alone in zip(pool.score([batch]), local, strict=True):
        ((_, score),) = graded.scores
        for name in ("ids_TK", "logprobs_TK", "rest_T", "sampled_T"):
            shipped, expected = getattr(score.payload, name), getattr(alone, name)
            np.testing.assert_allclose(shipped, expected[graded.rollout.loss_mask], atol=1e-5)
        given_tokens = {1} if whose == "teacher" else set(graded.rollout.support_ids[-1].tolist())
        assert given_tokens <= set(score.payload.ids_TK[-1].tolist())
        assert score.payload.ids_TK.shape[1] == 3 + len(given_tokens)
    if whose == "union":
        with pytest.raises(ValueError, match="the sampler recorded none"):
            pool.score([rollouts(1, domains=("code",))])
    pool.close()


def test_a_domain_without_a_route_is_an_error(pool):
    stray = rollouts(1, domains=("poetry",))
    with pytest.raises(KeyError, match="poetry"):
        pool[0].score([stray])


def test_a_teacher_that_cannot_be_loaded_is_named(cluster, tmp_path):
    pool = make_pool({"math": str(tmp_path / "nothing")})
    with pytest.raises(GradingFailed, match=r"teacher 'math' failed: .*nothing.*it was started 1 times"):
        pool.wait_until_ready()  # once: a second time it would fail the same way
    pool.close()


# ---- faults


def pid(pool, name):
    """Of the teacher's first process."""
    return ray.get(pool._worker_pools[name]._replicas[0].actor.__ray_call__.remote(lambda self: os.getpid()))


def broken_off(pool, batch, number, name):
    """Microbatches of a rollout each; after three of them the teacher's process gets a signal."""
    for i, rollout in enumerate(batch):
        if i == 3:
            os.kill(pid(pool, name), number)
        yield [rollout]


def bits(scored):
    return [(score.teacher, score.payload.logprobs_TV.tobytes()) for rollout in scored for _, score in rollout.scores]


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGKILL, "died: "), (signal.SIGSTOP, "did not answer within ")],
    ids=["dies", "hangs"],
)
def test_a_teacher_that_dies_or_hangs_amid_scoring_changes_no_bit(pool, number, message):
    pool, _, messages = pool
    expected = bits(pool.score([[rollout] for rollout in rollouts(30)]))
    pool.metrics(), messages.clear()
    before = pid(pool, "b")
    assert bits(pool.score(broken_off(pool, rollouts(30), number, "b"))) == expected
    metrics = pool.metrics()
    assert metrics["teacher_retries/b"] >= 1
    assert metrics["teacher_retries/a"] == 0
    assert any(f"teacher 'b' {message}" in line and "(1 of 3)" in line for line in messages)
    assert pid(pool, "b") != before
    assert (
        psutil.wait_procs([psutil.Process(before)] if psutil.pid_exists(before) else [], timeout=patience(10))[1] == []
    )


@pytest.mark.timeout(300)
def test_two_replicas_share_the_work_and_change_no_bit(pool):
    """Even where one of them dies, and the other does its work: the reference is the one process of the checkpoint."""

    def count_forwards(self):  # nested: a process of Ray's cannot import this file
        real, self.forwards = self._held.scorer.score, 0

        def counted(*args, **settings):
            self.forwards += 1
            return real(*args, **settings)

        self._held.scorer.score = counted

    pool, paths, _ = pool
    batch = rollouts(30, domains=("code",))
    expected = bits(pool.score([[rollout] for rollout in batch]))
    # Whoever waited for the lost one to come back would wait for a day.
    settings = {"routes": {"code": {"a": 1.0}}, "replicas": {"a": 2}, "backoff_seconds": 86400.0}
    both = make_pool({"a": paths["a"]}, **settings)
    both.wait_until_ready()
    actors = [replica.actor for replica in both._worker_pools["a"]._replicas]
    ray.get([actor.__ray_call__.remote(count_forwards) for actor in actors])
    assert bits(both.score([[rollout] for rollout in batch])) == expected
    worked = ray.get([actor.__ray_call__.remote(lambda self: self.forwards) for actor in actors])
    assert sum(worked) == 30 > max(worked)
    assert bits(both.score(broken_off(both, batch, signal.SIGKILL, "a"))) == expected
    assert both.metrics()["teacher_retries/a"] == 1
    both.close()  # which does not wait for it either


def test_metrics_count_what_was_done_since_they_were_read(pool):
    pool = pool[0]
    pool.score([rollouts(4)])
    metrics = pool.metrics()
    assert (metrics["teacher_retries/a"], metrics["teacher_retries/b"]) == (0, 0)
    assert metrics["seconds/teacher/a"] > 0 < metrics["seconds/teacher/b"]
    assert pool.metrics() == {**dict.fromkeys(metrics, 0), "teacher_processes": 2}


def test_a_fault_that_stays_or_changes_the_teacher_ends_the_run(cluster, tmp_path):
    path = make_model(tmp_path)
    pool = make_pool({"math": path}, retries=1)
    pool.wait_until_ready()
    model = load_model(path, device="cpu", dtype="float32")
    shutil.rmtree(path)
    os.kill(pid(pool, "math"), signal.SIGKILL)
    with pytest.raises(GradingFailed, match=r"'math' failed: .*lost 2 times, and `faults.retries` is 1"):
        pool.score([rollouts(2, domains=("math",))])
    model.resize_token_embeddings(VOCABULARY + 8)
    model.save_pretrained(path)
    with pytest.raises(GradingFailed, match=rf"'math' came back with {VOCABULARY + 8} output tokens and had"):
        pool.score([rollouts(2, domains=("math",))])
    pool.close()


def test_a_teacher_of_nan_is_asked_once(cluster, tmp_path):
    path = make_model(tmp_path)
    model = load_model(path, device="cpu", dtype="float32")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")
    model.save_pretrained(path)
    pool = make_pool({"math": path}, payload="sampled")
    with pytest.raises(NonFinite, match=r"teacher 'math' gave NaN.*weights have not moved"):
        pool.score([rollouts(2, domains=("math",))])
    assert pool.metrics()["teacher_retries/math"] == 0
    pool.close()

"""A teacher behind a server of the completions API: scores as here, what it can't give refused, its key unseen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import check, recipe, save_model, tokenizer_of, warnings
from pydantic import SecretStr
from served_kit import KEY, Server, serving
from student_kit import make_rollout

from mopd.distill.endpoint import Endpoint, EndpointLost, EndpointRefused
from mopd.distill.models.load import load_model
from mopd.distill.payloads import Support
from mopd.distill.recipe import FaultRecipe, Recipe
from mopd.distill.types import Full, GradingFailed, Payload, Prompt, Sampled, TopK, UserError
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.run.check_deep import deep_findings
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.engines.served import ServedSampler
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.kinds.served import DIGITS, Served
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

SUPPORT = Support(k=6, forced=(0, 1, 2))
TOKENS = np.random.default_rng(0)
IDS = [TOKENS.integers(3, 100, n).astype(np.int32) for n in (1, 9, 30, 17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = tokenizer_of("arithmetic", "list_programs", "ordering")
    return save_model(tmp_path_factory.mktemp("served") / "big", tokenizer, initializer_range=0.3)


@pytest.fixture(scope="module")
def running(folder: str) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.faults.__init__()
    return running


@pytest.fixture(scope="module")
def here(folder: str) -> TeacherModel:
    return TeacherModel(
        folder, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=10_000, support=SUPPORT
    )


def source(server: Server, here: TeacherModel) -> Served:
    return Served(Endpoint(server.url, "big", SecretStr(KEY)), here.vocabulary)


def whole(here: TeacherModel) -> list[np.ndarray]:
    return [payload.logprobs_TV for payload in here.score(IDS, "full") if isinstance(payload, Full)]


def test_its_sampled_scores_are_the_local_ones(server: Server, here: TeacherModel) -> None:
    there = source(server, here).open(Conditions(1.0, 64), []).score(IDS, "sampled")
    for local, served in zip(here.score(IDS, "sampled"), there, strict=True):
        assert isinstance(local, Sampled)
        assert isinstance(served, Sampled)
        np.testing.assert_allclose(served.logprobs_T[1:], local.logprobs_T[1:], atol=1e-4)
    assert len(server.faults.asked) == 1  # a microbatch is one request


def test_its_support_holds_the_likeliest_tokens_and_the_one_that_was_written(
    server: Server, here: TeacherModel
) -> None:
    there = source(server, here).open(Conditions(1.0, 64, SUPPORT), []).score(IDS, "topk")
    k, outside = SUPPORT.k + len(SUPPORT.forced), 0
    for ids_T, full_TV, payload in zip(IDS, whole(here), there, strict=True):
        assert isinstance(payload, TopK)
        assert payload.ids_TK.shape == (len(ids_T), k)
        for t in range(1, len(ids_T)):
            row, ids = full_TV[t].astype(np.float64), payload.ids_TK[t].tolist()
            likeliest = np.argsort(-row, kind="stable").tolist()
            inside = int(ids_T[t]) in likeliest[:k]
            outside += not inside
            assert set(ids) == set(likeliest[:k] if inside else [*likeliest[: k - 1], int(ids_T[t])])
            np.testing.assert_allclose(payload.logprobs_TK[t], row[ids], atol=1e-4)
            rest = np.exp(np.delete(row, ids)).sum()
            # One minus a sum of float32 log-probabilities: their absolute error is that of the probabilities.
            assert np.exp(payload.rest_T[t]) == pytest.approx(rest, abs=k * 1e-4)
            assert payload.sampled_T[t] == pytest.approx(row[ids_T[t]], abs=1e-4)
    assert outside > 10  # else the second half was not tried


def test_a_rest_without_digits_stays_a_log_probability(server: Server, here: TeacherModel) -> None:
    def certain(choice: dict[str, Any]) -> None:
        for row in choice["prompt_logprobs"] or []:
            for i, token in enumerate(row.values() if row else []):
                token["logprob"] = 0.0 if i == 0 else -30.0

    server.faults.spoil = certain
    (payload,) = source(server, here).open(Conditions(1.0, 64, SUPPORT), []).score(IDS[1:2], "topk")
    assert isinstance(payload, TopK)
    assert np.isfinite(payload.rest_T).all()
    most = math.log(here.vocabulary - 9) - 30.0  # nobody outside is likelier than the least likely inside
    np.testing.assert_allclose(payload.rest_T[1:], most, rtol=1e-6)
    assert most < math.log(9 * DIGITS)


def other_tokens(choice: dict[str, Any]) -> None:
    choice["prompt_logprobs"][1] = {"3": {"logprob": -1.0, "rank": 1}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(prompt_logprobs=None), "must be one that gives the log-probabilities of its prompts"),
        (lambda c: c.update(prompt_logprobs=c["prompt_logprobs"][:3]), "a prompt of 9 tokens came back with 3 of them"),
        (other_tokens, "at position 1 came back as tokens 3"),
        (lambda c: c.update(index=7), "1 choices for 1 prompts"),
    ],
)
def test_an_answer_that_is_not_of_the_tokens_that_were_sent_is_refused(
    server: Server, here: TeacherModel, spoil: Any, message: str
) -> None:
    server.faults.spoil = spoil
    with pytest.raises(GradingFailed, match=message):
        source(server, here).open(Conditions(1.0, 64), []).score(IDS[1:2], "sampled")


def test_it_is_not_opened_under_conditions_that_it_would_ignore(server: Server, here: TeacherModel) -> None:
    for conditions in (Conditions(0.7, 64), Conditions(1.0, 64, replace(SUPPORT, whose="union"))):
        with pytest.raises(GradingFailed, match="scores at temperature 1"):
            source(server, here).open(conditions, [])


def test_lost_and_refused_are_told_apart_and_the_key_is_in_neither(server: Server) -> None:
    endpoint = Endpoint(server.url, "big", SecretStr(KEY))
    for status, kind in ((503, EndpointLost), (429, EndpointLost), (400, EndpointRefused), (401, EndpointRefused)):
        server.faults.status = status
        with pytest.raises(kind, match=f"answered {status}: no such thing") as raised:
            endpoint.complete([[1, 2]], max_tokens=1)
        assert KEY not in repr(raised.value)
    with pytest.raises(EndpointLost, match="no answer from"):
        Endpoint("http://127.0.0.1:9/v1", "big", SecretStr(KEY)).models()
    with pytest.raises(EndpointRefused, match="answered 401: Unauthorized"):
        Endpoint(server.url, "big").models()
    with pytest.raises(EndpointRefused, match=r"answered 401: Unauthorized: Bearer \[the key\]"):  # some repeat it
        Endpoint(server.url, "big", SecretStr("sk-of-another")).models()
    assert KEY not in f"{endpoint} {endpoint!r}"
    with pytest.raises(EndpointRefused, match="no request could be made") as raised:
        Endpoint(server.url, "big", SecretStr(f"{KEY}\n")).models()
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}\N{SNOWMAN}"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPD_TEST_KEY", key)
    with pytest.raises(UserError, match="`leaf` is MOPD_TEST_KEY, and what that holds is no key") as refused:
        Endpoint.reach("http://host/v1", "big", key_env="MOPD_TEST_KEY", where="leaf")
    assert KEY not in str(refused.value)


def test_a_key_in_the_place_of_its_variable_is_not_shown() -> None:
    with pytest.raises(UserError, match="`leaf` is no name of an environment variable") as refused:
        Endpoint.reach("http://host/v1", "big", key_env=KEY, where="leaf")
    assert KEY not in str(refused.value)


def test_it_answers_questions_as_its_weights_do_here(server: Server, folder: str) -> None:
    prompts = [Prompt("math", f"math/{i}", tuple(ids.tolist()), "?", "!") for i, ids in enumerate(IDS)]
    local = StudentSampler(
        Decoding(max_new_tokens=12, temperature=1.0, greedy=True, seed=0, step=0, end_token_ids=(1,), pad_token_id=0),
        samples_per_prompt=1,
        batch_size=2,
    )
    local.load_weights(InProcess(load_model(folder, device="cpu", dtype="float32")), version=0)
    faults = FaultRecipe(backoff_seconds=0.0)
    remote = ServedSampler(
        Endpoint(server.url, "big", SecretStr(KEY)), end_token_ids=(1,), max_new_tokens=12, batch_size=3, faults=faults
    )
    server.faults.away = 2
    served_rollouts = [rollout for batch in remote.sample(prompts, step=0, greedy=True) for rollout in batch]
    local_rollouts = [rollout for batch in local.sample(prompts, step=0, greedy=True) for rollout in batch]
    for a, b in zip(local_rollouts, served_rollouts, strict=True):
        assert (a.prompt, a.token_ids.tolist(), a.finish) == (b.prompt, b.token_ids.tolist(), b.finish)
        np.testing.assert_allclose(b.sampler_logprobs, a.sampler_logprobs, atol=1e-4)
    with pytest.raises(ValueError, match="not be the same on a resume"):
        next(remote.sample(prompts, step=0))
    server.faults.away = 9
    with pytest.raises(EndpointLost, match="503: loading"):
        next(remote.sample(prompts, step=0, greedy=True))


def test_a_server_that_was_away_is_asked_again_and_one_that_refuses_is_not(
    cluster: None, server: Server, here: TeacherModel
) -> None:
    messages: list[str] = []
    pool = TeacherPool(
        {"big": TeacherSpec(source(server, here), Conditions(1.0, 64), gpus=0.0, replicas=2)},
        routes={"math": {"big": 1.0}},
        payload="sampled",
        faults=FaultRecipe(retries=2, backoff_seconds=0.0),
        say=messages.append,
    )
    rollouts = [make_rollout(np.random.default_rng(i), i, "math", prompt=3, completion=9) for i in range(2)]
    assert pool.wait_until_ready() == {"big": here.vocabulary}
    server.faults.away = 2
    scored = pool.score([rollouts])
    local = here.score([rollout.token_ids for rollout in rollouts], "sampled")
    for scored_rollout, payload in zip(scored, local, strict=True):
        trained = payload.at(scored_rollout.rollout.loss_mask)
        np.testing.assert_allclose(logprobs(scored_rollout.scores[0][1].payload), logprobs(trained), atol=1e-4)
    assert pool.metrics()["teacher_retries/big"] == 2
    assert [f"503: loading; asking again ({n} of 2)" in messages[n - 1] for n in (1, 2)] == [True, True]
    assert "restarting" not in " ".join(messages)  # the processes are well
    server.faults.status, asked = 400, len(server.faults.asked)
    with pytest.raises(GradingFailed, match=r"teacher 'big': big at .* answered 400: no such thing"):
        pool.score([rollouts])
    assert len(server.faults.asked) == asked + 1
    assert KEY not in " ".join(messages)
    pool.close()


def logprobs(payload: Payload) -> np.ndarray:
    assert isinstance(payload, Sampled)
    return payload.logprobs_T[1:]


def served(folder: str, server: Server | None, **changes: Any) -> Recipe:
    """A student with a teacher behind the server."""
    teacher = {"model": folder, "endpoint": server.url if server else "http://127.0.0.1:9/v1", "served_model": "big"}
    tree: dict[str, Any] = {
        "student": {"model": folder},
        "teachers": {"math": teacher | {"api_key_env": "MOPD_TEST_KEY"} | changes.pop("teacher", {})},
        "loss": {"estimator": "policy_gradient"},
        "stages": {},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 20},
    }
    return recipe(**tree | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": {"estimator": "full_reverse_kl"}},
            "and `loss.estimator` full_reverse_kl needs full",
        ),
        (
            {"loss": {"estimator": "full_reverse_kl", "payload": "hidden"}},
            "full_reverse_kl needs hidden",
        ),
        ({"loss": {"estimator": "forward_kl"}}, "a served teacher gives sampled, topk, and"),
        ({"loss": {"estimator": "topk_reverse_kl", "k": 8, "support": "union"}}, "take `support: teacher`"),
        ({"rollout": {"max_new_tokens": 40, "temperature": 0.7}}, "`rollout.temperature` is 0.7; set it to 1"),
        ({"teacher": {"model": "self"}}, "a run makes, so no server has it yet"),
        ({"teacher": {"adapter": "./a"}}, "a server is not given any"),
        (
            {"teacher": {"endpoint": None}},
            "`teachers.math.served_model` is set, and a checkpoint",
        ),
        ({"teacher": {"endpoint": "localhost:8000"}}, "a URL is needed, such as http://host:8000/v1"),
        ({"teacher": {"endpoint": f"http://me:{KEY}@host:8000/v1"}}, "carries a name, a password or a query"),
        ({"teacher": {"endpoint": f"http://host:8000/v1?api_key={KEY}"}}, "carries a name, a password or a query"),
        ({"teacher": {"endpoint": "http://host:port/v1"}}, "a URL is needed, such as http://host:8000/v1"),
        ({"method": "off_policy", "loss": {"estimator": "nll"}}, "needs its teachers' weights, which are not here"),
        ({"teacher": {"api_key_env": "MOPD_NO_KEY"}}, "MOPD_NO_KEY, and no environment variable of that name is set"),
        ({"teacher": {"served_model": "small"}}, "serves big, and not 'small'"),
        ({"rollout": {"max_new_tokens": 90}}, "has room for 90 tokens"),
        ({"loss": {"estimator": "topk_reverse_kl", "k": 80}}, "greater than max allowed: 64"),
    ],
)
def test_what_it_cannot_give_is_refused_before_the_run(
    changes: dict[str, Any], message: str, server: Server, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPD_TEST_KEY", KEY)
    monkeypatch.setattr(server, "context", 90)
    with pytest.raises(UserError) as refused:
        check(served(folder, server, **changes), tmp_path)
    assert message in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"dtype": "float32"}}, "`teachers.math.dtype` is set and changes nothing: the server at"),
    ],
)
def test_what_its_kind_does_not_read_is_a_warning(
    changes: dict[str, Any], message: str, server: Server, folder: str
) -> None:
    assert any(warning.startswith(message) for warning in warnings(served(folder, server, **changes)))


def test_a_sound_one_passes_and_its_plan_says_where_it_is(
    server: Server, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPD_TEST_KEY", KEY)
    plan = check(served(folder, server, loss={"estimator": "topk_reverse_kl", "k": 8}), tmp_path)
    assert f"served as big at {server.url}" in plan.models[0].made
    assert [p.name for p in plan.processes] == ["measuring base", "rank of the student", "asking teacher math"]
    assert all(step.payload_bytes > 0 for step in plan.steps)


def test_a_server_that_is_away_or_reads_otherwise_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPD_TEST_KEY", KEY)
    with pytest.raises(UserError, match=r"no answer from http://127.0.0.1:9/v1 .*start the server, or correct the URL"):
        check(served(folder, None), tmp_path)
    other = save_model(tmp_path / "other", tokenizer_of("ordering"), vocab_size=200)
    with (
        serving(other) as reads_otherwise,
        pytest.raises(UserError, match=r"apart into .*, and the student's tokenizer into"),
    ):
        check(served(folder, reads_otherwise), tmp_path)


def test_a_check_that_starts_models_tries_it_out(
    server: Server, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPD_TEST_KEY", KEY)
    (finding,) = deep_findings(resolve(served(folder, server)), tmp_path)
    # The same weights teach nothing, and are no distance away.
    assert (finding.teacher, finding.domain) == ("math", "math")
    assert re.match(r"KL -?0.000 ± 0.000 nats a token", finding.reason)

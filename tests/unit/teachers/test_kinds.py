"""A kind of teacher from one file of a user's own: it is checked, placed and scores like a shipped one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import check, problems, recipe, save_model, tokenizer_of, warnings
from own_page_kit import example
from student_kit import make_rollout

from mopd.distill.recipe import FaultRecipe, TeacherRecipe
from mopd.distill.types import GradingFailed, Sampled
from mopd.recipes.resolve.resolved import resolve
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds import KINDS, TeacherSetup, kind_of, make_source
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

FLAT = example("A kind of teacher")
"""The example of the documentation."""
CONSTANT = """
from dataclasses import dataclass

import numpy as np
from transformers import AutoConfig

from mopd import Sampled, TeacherKind


@dataclass(frozen=True)
class Source:
    logprob: float
    vocabulary: int

    def open(self, conditions, adapters):
        return self

    def score(self, token_ids, payload, adapter=None, given=None):
        return [Sampled(np.full(len(ids_T), self.logprob, np.float32)) for ids_T in token_ids]


def source(setup):
    return Source(setup.stanza.settings["logprob"], AutoConfig.from_pretrained(setup.folder).vocab_size)


def check(use):
    if use.stanza.settings.get("logprob", 1.0) > 0:
        yield f"`teachers.{use.name}.settings.logprob` is no log-probability"


KIND = TeacherKind("constant", source, payloads=("sampled",), has_weights=False, check=check)
NO_KIND = Source(0.0, 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a model of which nothing but configuration and tokenizer is here, and the file of the kind."""
    made = tmp_path_factory.mktemp("kinds")
    for name in ("student", "teacher"):
        save_model(made / name, tokenizer_of("arithmetic", "ordering"))
    (made / "teacher" / "model.safetensors").unlink()
    (made / "constant.py").write_text(CONSTANT)
    return made


def stanza(folder: Path, **changes: Any) -> dict[str, Any]:
    kind = f"{folder}/constant.py:KIND"
    return {"model": str(folder / "teacher"), "kind": kind, "settings": {"logprob": -2.0}} | changes


def tree(folder: Path, *, loss: str = "policy_gradient", **changes: Any) -> dict[str, Any]:
    """Sections of a recipe with two teachers, of which the second has ``changes`` in its stanza."""
    return {
        "student": {"model": str(folder / "student")},
        "domains": {
            "math": {"task": "arithmetic", "teacher": "one", "prompts": 4},
            "rest": {"task": "ordering", "teacher": "two", "prompts": 4},
        },
        "teachers": {"one": stanza(folder), "two": stanza(folder, **changes)},
        "loss": {"estimator": loss},
        "stages": {},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 20},
    }


def test_it_is_checked_and_placed_and_its_weights_are_not_needed(folder: Path, tmp_path: Path) -> None:
    other = {"logprob": -3.0}
    made = recipe(**tree(folder, settings=other))
    plan = check(made, tmp_path)
    assert [process.name for process in plan.processes] == [
        "measuring base",
        "rank of the student",
        "asking teacher one",
        "asking teacher two",
    ]
    resolved = resolve(made)
    assert resolved.groups == [["one"], ["two"]]
    assert [(teacher.device, teacher.gpus) for teacher in resolved.teachers.values()] == [("cpu", 0.0)] * 2
    assert resolve(recipe(**tree(folder))).groups == [["one", "two"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"logprob": 0.5}}, "`teachers.two.settings.logprob` is no log-probability"),
        ({"loss": "full_reverse_kl"}, "`teachers.two`: a constant teacher gives sampled, and `loss.estimator` full_"),
        ({"loss": "full_reverse_kl"}, "needs full"),
        ({"kind": "NO_KIND"}, "`teachers.two.kind` is"),
        ({"kind": "NOTHING"}, "has no 'NOTHING'"),
    ],
)
def test_what_it_lacks_is_told_by_its_leaf(changes: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    if "kind" in changes:
        changes = {"kind": f"{folder}/constant.py:{changes['kind']}"}
    assert message in " ".join(problems(tmp_path, **tree(folder, **changes)))


def test_what_it_does_not_read_is_a_warning(folder: Path) -> None:
    (warning,) = warnings(recipe(**tree(folder, dtype="bfloat16")))
    assert warning.startswith("`teachers.two.dtype` is set and changes nothing: a constant teacher reads no")


def test_a_shipped_kind_is_told_from_the_keys_of_its_stanza_or_named() -> None:
    assert kind_of(TeacherRecipe(model="./a")) is KINDS["checkpoint"]
    assert kind_of(TeacherRecipe(model="./a", endpoint="http://here/v1")) is KINDS["served"]
    assert kind_of(TeacherRecipe(model="./a", scorer="./b.py:B")) is KINDS["custom"]
    assert kind_of(TeacherRecipe(model="./a", scorer="./b.py:B", kind="custom")) is KINDS["custom"]
    assert [kind.takes_adapters for kind in KINDS.values()] == [True, False, False]


def setup(folder: Path, name: str, logprob: float) -> TeacherSetup:
    written = TeacherRecipe.model_validate(stanza(folder, settings={"logprob": logprob}))
    return TeacherSetup(name, str(folder / "teacher"), "cpu", "float32", None, False, 600.0, written)


def test_it_scores_in_processes_and_its_settings_reach_it(cluster: None, folder: Path) -> None:
    logprobs = {"one": -2.0, "two": -3.0, "too": -2.0}
    specs = {
        name: TeacherSpec(make_source(setup(folder, name, logprob)), Conditions(1.0, 64), 0.0, 1, has_weights=False)
        for name, logprob in logprobs.items()
    }
    pool = TeacherPool(
        specs, routes={name: {name: 1.0} for name in specs}, payload="sampled", faults=FaultRecipe(), say=print
    )
    sizes = pool.wait_until_ready()
    assert set(sizes) == set(specs)
    assert len({*sizes.values()}) == 1
    rng = np.random.default_rng(0)
    rollouts = [make_rollout(rng, i, name, prompt=3, completion=4 + i) for i, name in enumerate(logprobs)]
    for scored in pool.score([rollouts]):
        ((_, score),) = scored.scores
        assert isinstance(score.payload, Sampled)
        expected = np.full(scored.rollout.trained_tokens, logprobs[scored.rollout.domain], np.float32)
        np.testing.assert_array_equal(score.payload.logprobs_T, expected)
    pool.close()


def test_the_documented_one_scores_as_it_says(folder: Path) -> None:
    (folder / "flat.py").write_text(FLAT)
    written = TeacherRecipe.model_validate(stanza(folder, kind=f"{folder}/flat.py:FLAT"))
    assert not kind_of(written).has_weights
    scorer = make_source(replace(setup(folder, "one", -2.0), stanza=written)).open(Conditions(1.0, 64), [])
    (payload,) = scorer.score([np.arange(5, dtype=np.int32)], "sampled")
    assert isinstance(payload, Sampled)
    np.testing.assert_array_equal(payload.logprobs_T, np.full(5, -2.0, np.float32))


def test_a_file_that_was_changed_during_the_run_is_not_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "constant.py").write_text(CONSTANT)
    (tmp_path / "teacher").symlink_to(folder / "teacher")
    source = make_source(setup(tmp_path, "one", -2.0))
    assert source.open(Conditions(1.0, 64), []).vocabulary > 0
    (tmp_path / "constant.py").write_text(CONSTANT + "# another\n")
    with pytest.raises(GradingFailed, match="was changed during the run"):
        source.open(Conditions(1.0, 64), [])

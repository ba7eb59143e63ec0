"""Checkpoints whose code lies beside them: it runs only where a stanza trusts it, and then wherever they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import check, problems, recipe, save_model, save_own_code, tokenizer_of
from student_kit import ProcessRanks, make_spec, student
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mopd.distill.models.load import load_model
from mopd.distill.types import Sampled
from mopd.recipes.cli import app
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.sources import trusted_leaves
from mopd.teachers.kinds.checkpoint import Checkpoint
from mopd.teachers.scorer import Conditions

IDS = np.arange(2, 12, dtype=np.int32)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save_own_code(tmp_path_factory.mktemp("own"), tokenizer_of("arithmetic"), initializer_range=0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("plain"), tokenizer_of("arithmetic"), initializer_range=0.5)


def models(student: str, teacher: str, *, trust: tuple[str, ...] = (), stage: str | None = None) -> dict[str, Any]:
    """Sections of a recipe; ``trust`` names the stanzas that let code run."""

    def stanza(name: str, leaf: str, source: str) -> dict[str, Any]:
        return {leaf: source} | ({"trust_remote_code": True} if name in trust else {})

    stages = {} if stage is None else {"made": stanza("stage", "from", stage)}
    return {"student": stanza("student", "model", student), "stages": stages,
            "teachers": {"math": stanza("teacher", "model", teacher)}}  # fmt: skip


@pytest.mark.parametrize(
    ("student", "teacher", "stage", "leaf"),
    [
        ("own", "plain", None, "student"),
        ("plain", "own", None, "teachers.math"),
        ("plain", "stage:made", "own", "stages.made"),
    ],
)
def test_code_that_no_stanza_trusts_is_refused_and_the_leaf_is_named(
    own: str, plain: str, tmp_path: Path, student: str, teacher: str, stage: str | None, leaf: str
) -> None:
    folders = {"own": own, "plain": plain}
    source = {name: folders.get(name, name) for name in (student, teacher)}
    found = problems(tmp_path, **models(source[student], source[teacher], stage=folders.get(stage or "")))
    assert len(found) == 1
    assert f"the configuration in {own} needs Python code that lies beside it" in found[0]
    assert f"set `{leaf}.trust_remote_code: true` if you trust it" in found[0]


def test_whoever_loads_the_weights_must_trust_their_code(own: str, plain: str, tmp_path: Path) -> None:
    """A stage's result holds the code that its start came with."""
    told = problems(tmp_path, **models(plain, "stage:made", stage=own, trust=("stage",)))
    assert len(told) == 1
    assert told[0].startswith(f"`teachers.math.model`: it is made from {own}, and needs Python code")
    assert "`teachers.math.trust_remote_code: true`" in told[0]
    assert check(recipe(**models(plain, "stage:made", stage=own, trust=("stage", "teacher"))), tmp_path).models


def test_trust_where_there_is_no_code_is_refused(own: str, plain: str, tmp_path: Path) -> None:
    (told,) = problems(tmp_path, **models(own, plain, trust=("student", "teacher")))
    assert told.startswith("`teachers.math.trust_remote_code` is set and would change nothing")


def test_an_anchor_trusts_what_the_student_trusts(own: str, plain: str, tmp_path: Path) -> None:
    sections = models(own, plain, trust=("student",))
    sections["teachers"]["anchor"] = {"model": "self"}
    sections["domains"] = {
        "math": {"task": "arithmetic", "teacher": "math"},
        "rest": {"task": "arithmetic", "teacher": "anchor"},
    }
    made = recipe(**sections)
    check(made, tmp_path)
    assert trusted_leaves(resolve(made).models.values()) == {"student.model", "teachers.anchor.model"}


def test_trusted_code_scores_counts_trains_and_is_exported(own: str, tmp_path: Path, one: ProcessRanks) -> None:
    conditions = Conditions(temperature=1.0, microbatch_tokens=64)
    (score,) = Checkpoint(own, "cpu", "float32", trust_remote_code=True).open(conditions, []).score([IDS], "sampled")
    model = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
    with torch.no_grad():
        logits_TV = model.lm_head(model.model(torch.from_numpy(IDS).long()[None]).last_hidden_state)[0]
    expected_TV = (2 * logits_TV).log_softmax(-1)
    assert isinstance(score, Sampled)
    assert score.logprobs_T[-1] == pytest.approx(float(expected_TV[-2, IDS[-1]]), abs=1e-5)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(own, device="cpu", dtype="float32")
    assert Costs(own, {"t": own}, writes=True, trusted=frozenset({"student.model", "teachers.t.model"}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        Costs(own, {}, writes=True)

    spec = make_spec(own, tmp_path / "run", trust_remote_code=True)
    learner = student(one.start(spec), spec)
    learner.export(str(tmp_path / "student"))
    again = load_model(tmp_path / "student", device="cpu", dtype="float32", trust_remote_code=True)
    with torch.no_grad():
        logits_TV = again(torch.from_numpy(IDS).long()[None]).logits[0]
    torch.testing.assert_close(logits_TV.log_softmax(-1), expected_TV)
    assert load_tokenizer(str(tmp_path / "student")).get_vocab() == load_tokenizer(own).get_vocab()


def test_eval_names_its_own_option(own: str) -> None:
    ended = CliRunner().invoke(app, ["eval", own, "--tasks", "arithmetic", "--prompts", "1"])
    assert ended.exit_code == 2
    assert "give --trust-remote-code if you trust it" in ended.stderr
    ended = CliRunner().invoke(app, ["eval", own, "--tasks", "arithmetic", "--prompts", "1", "--trust-remote-code"])
    assert ended.exit_code == 0, ended.output

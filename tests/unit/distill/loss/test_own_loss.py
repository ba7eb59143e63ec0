"""A user's own loss, ``estimator: ./file.py:NAME``: trained with like a shipped one, and its promises checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_kit import check, problems, recipe
from own_page_kit import example
from student_kit import ProcessRanks, furthest, make_model, make_spec, train

from mopd.distill.loss.registry import located
from mopd.distill.recipe import CustomLoss
from mopd.recipes.check.plugins import check_own_loss

OWN = example("A loss")
"""The example of the documentation."""


def written(folder: Path, source: str = OWN, name: str = "LOSS", **settings: float) -> CustomLoss:
    (folder / "loss.py").write_text(source)
    return CustomLoss(estimator=f"{folder}/loss.py:{name}", settings=settings or {"strength": 1.0})


def test_the_exact_reverse_kl_of_ones_own_trains_like_the_shipped_one(
    tmp_path: Path, one: ProcessRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path, "llama")
    (tmp_path / "loss.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)  # where the ranks are not: they were started before
    relative = CustomLoss(estimator="./loss.py:LOSS", settings={"strength": 1.0})
    kept = {}
    for name, loss in {"shipped": {}, "own": {"loss": located(relative)}}.items():
        kept[name] = train(one, make_spec(model, tmp_path / name, **loss), steps=2)
    for domain in ("code", "math", "reasoning"):
        key = f"kl/{domain}"
        assert kept["own"][1][1][key] == pytest.approx(kept["shipped"][1][1][key], rel=1e-4)
    assert furthest(kept["own"][0], kept["shipped"][0]) < 1e-4


def test_strength_scales_the_gradient(tmp_path: Path) -> None:
    assert list(check_own_loss(written(tmp_path, strength=3.0))) == []


def changed(old: str, new: str) -> str:
    assert old in OWN
    return OWN.replace(old, new)


REFUSED: dict[str, tuple[str, str]] = {
    "no such name": (changed("LOSS =", "OTHER ="), "has no 'LOSS'"),
    "no spec": (
        changed('LossSpec("full", kl)', "kl"),
        "is function, and must be a mopd.distill.loss.registry.LossSpec",
    ),
    "a payload that it can't have": (changed('"full"', '"topk"'), "has payload 'topk'; take one of 'sampled', 'full'"),
    "a setting that is not given": (changed('"strength"', '"beta"'), "raises KeyError: 'beta'"),
    "no token loss": (changed("return spread(", "return ("), "and must give a mopd.distill.loss.base.TokenLoss"),
    "NaN of masked tokens": (
        OWN.replace("[mask_BT]", "").replace("return spread(", "return TokenLoss(mask_BT * ").replace(", mask_BT)", ")")
        + "\nfrom mopd.distill.loss.base import TokenLoss",
        "maybe from tokens that are not trained",
    ),
    "no gradient": (changed("kl_N = (", "kl_N = 0 * ("), "whose gradient is zero"),
    "detached": (changed(".sum(-1)\n", ".sum(-1).detach()\n"), "gives a loss without a gradient"),
    "stats with a gradient": (changed("kl_N.detach()", "kl_N"), "stats['kl'] with a gradient; detach it"),
    "a number for a sequence": (changed('settings["strength"] * kl_N', "kl_N.mean()"), "raises RuntimeError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_loss_is_told_with_its_leaf(tmp_path: Path, case: str) -> None:
    source, told = REFUSED[case]
    found = list(check_own_loss(written(tmp_path, source)))
    assert len(found) == 1
    assert found[0].startswith("`loss.estimator`")
    assert told in found[0]


def test_a_setting_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    (found,) = check_own_loss(written(tmp_path, strength=1.0, beta=2.0))
    assert found.startswith("`loss.settings.beta` is set and would change nothing")


def test_a_loss_that_knows_no_ratio_is_refused_where_what_is_stale_is_left_out(tmp_path: Path) -> None:
    (found,) = check_own_loss(written(tmp_path), judged=True)
    assert "gives no stats['ratio']" in found
    with_ratio = changed('{"kl": kl_N.detach()}', '{"kl": kl_N.detach(), "ratio": kl_N.detach()}')
    assert list(check_own_loss(written(tmp_path, with_ratio), judged=True)) == []


def test_check_holds_an_own_loss_to_its_method(tmp_path: Path) -> None:
    own = written(tmp_path).model_dump()
    check(recipe(loss=own), tmp_path / "run")
    source = changed('"full"', "None").replace("microbatch.teacher[mask_BT]", "1.0")
    (found,) = problems(tmp_path / "run", loss=written(tmp_path, source).model_dump())
    assert found.startswith("`loss.estimator`")
    assert "has payload None, and method 'mopd' takes 'full' or 'sampled'" in found
    (found,) = problems(tmp_path / "run", loss={**own, "estimator": f"{tmp_path}/gone.py:LOSS"})
    assert "there is no file" in found

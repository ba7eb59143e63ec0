"""The window study's questions and parts: what is asked can be known, and only from where it is said to stand."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from mopd.distill.models.attention import BANDED
from tests.window import study
from tests.window.parts import OFF, SEEDS, TIMES, VARIATIONS, Variation, build, run_part
from tests.window.questions import AGAIN, ASK, FACT, HOP, PROGRAM, QUESTIONS, SUM, VALUES, VOCABULARY, batch


def answer(name: str, ids: list[int], at: int) -> int:
    """What stands at a place, from the rules alone."""
    before = ids[:at]
    if name == "needle":
        return before[before.index(before[-1]) + 1]
    if name == "two_hop":
        source = before[-1]
        (place,) = (i for i in range(at) if before[i] == HOP and before[i + 1] == source)
        return before[place + 2]
    if name == "repeated_program":
        return ids[1 + at - 1 - ids.index(AGAIN)]
    a, b = (VALUES.index(token) for token in before[-2:])
    return VALUES[(a + b) % len(VALUES)]


@pytest.mark.parametrize("length", [128, 129, 2048])
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_answer_follows_from_what_stands_before_it(name: str, length: int) -> None:
    ids, right = batch(name, key=(7,), sequences=5, length=length)
    assert ids.shape == right.shape == (5, length)
    assert 0 < ids.max() < VOCABULARY
    for row, answers in zip(ids.tolist(), right, strict=True):
        assert answers.any()
        assert [row[at] for at in np.flatnonzero(answers)] == [answer(name, row, at) for at in np.flatnonzero(answers)]


def test_what_is_far_away_goes_with_the_length_and_sums_do_not() -> None:
    """Tokens between an answer and what it needs, the mean over sequences, at 128 and at sixteen times that."""
    far: dict[str, list[float]] = {}
    for name, marker in (("needle", FACT), ("two_hop", HOP), ("nearby_sums", SUM)):
        for length in (128, 2048):
            ids, right = batch(name, key=(3,), sequences=20, length=length)
            gaps = [
                np.flatnonzero(a).min() - np.flatnonzero(row == marker).mean()
                for row, a in zip(ids, right, strict=True)
            ]
            far.setdefault(name, []).append(float(np.mean(np.abs(gaps))))
    assert far["needle"][1] > 10 * far["needle"][0]
    assert far["two_hop"][1] > 10 * far["two_hop"][0]
    program = batch("repeated_program", key=(3,), sequences=2, length=2048)[0]
    assert (np.argmax(program == AGAIN, axis=1) == 2048 - PROGRAM - 1).all()
    assert (batch("needle", key=(3,), sequences=9, length=128)[0] == ASK).sum() == 9 * 4


def test_draws_are_keyed_and_training_does_not_see_what_is_measured() -> None:
    one, again = (batch("needle", key=(1, 0, 5), sequences=4, length=128)[0] for _ in range(2))
    assert (one == again).all()
    measured = batch("needle", key=(2, 0), sequences=64, length=128)[0]
    assert not {row.tobytes() for row in one} & {row.tobytes() for row in measured}


def test_the_variations_are_what_the_study_says() -> None:
    assert len({v.name for v in VARIATIONS}) == len(VARIATIONS) == 11
    for variation in VARIATIONS:
        model = build(variation, 0)
        kinds = model.config.layer_types
        assert model.config._attn_implementation == BANDED
        if variation.window is not None:
            assert kinds.count("sliding_attention") == variation.sliding * kinds.count("full_attention")
            assert kinds[-1] == "full_attention"
            sinks = [layer.self_attn.sinks for layer in model.model.layers if layer.self_attn.sinks is not None]
            assert all((s == (0.0 if variation.sinks else OFF)).all() for s in sinks)
            assert len(sinks) == kinds.count("sliding_attention")
        else:
            assert set(kinds) == {"full_attention"}


def test_sinks_that_are_off_are_no_sinks() -> None:
    """Against the same weights without the parameter, and they get no gradient."""
    model = build(Variation(8, sinks=False), 0)
    ids = torch.randint(1, VOCABULARY, (1, 40))
    logits = model(input_ids=ids).logits
    logits.sum().backward()
    for layer in model.model.layers:
        sinks = layer.self_attn.sinks
        assert sinks is None or not sinks.grad.any()
        layer.self_attn.sinks = None
    torch.testing.assert_close(model(input_ids=ids).logits, logits, rtol=0, atol=1e-6)


def test_a_part_learns_what_is_near_and_its_row_is_found_again(tmp_path: Any, monkeypatch: Any) -> None:
    """The same part gives the same numbers; the next call runs the next one; the tables have what is there."""
    small = Variation(16, length=48, steps=3, sequences=1, measured=2)
    first, second = run_part(small, 0), run_part(small, 0)
    same = ("loss", "accuracy", "cached_bytes")
    assert [first[key] for key in same] == [second[key] for key in same]
    assert set(first["accuracy"]["needle"]) == {str(48 * n) for n in TIMES}
    assert json.loads(json.dumps(first)) == first
    others = [dataclasses.replace(small, window=window) for window in (16, 64)]
    monkeypatch.setattr(study, "VARIATIONS", others)
    rows = [{**first, "variation": v.name, "seed": seed} for v in others for seed in SEEDS[:2]]
    assert study.missing(rows) == [(v, SEEDS[2]) for v in others]
    assert study.table(rows, "needle").row_count == 2
    assert len(study.pairs(rows)) == len(QUESTIONS)
    assert study.interval([0.5]) == (0.5, math.inf)
    mean, half = study.interval([0.0, 1.0, 0.5])
    assert mean == 0.5
    assert half == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)  # t of 2 degrees of freedom, by the tables

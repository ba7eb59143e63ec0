"""Writing with guesses: the same tokens as without, the distribution itself, and a control that must fail."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from student_kit import VOCABULARY, make_model
from torch import Tensor
from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

from mopd.distill.metrics.drafts import total_counts
from mopd.distill.models.load import load_whole
from mopd.distill.models.mtp import DraftHeads, attach, make_heads
from mopd.distill.payloads import Support
from mopd.distill.types import Prompt, UserError, align_logits
from mopd.rollouts.engines import canary, drafts
from mopd.rollouts.engines.base import Decoding, DraftCosts, Drafts, FrozenModel
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.drafts import Speculation
from mopd.rollouts.engines.generate import Completion, generate
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.engines.workers import SamplerWorker, as_array

EOS, PAD = 1, 0
HOW = Decoding(24, 1.0, False, 3, 5, (EOS,), PAD)
PAYS_BELOW_FIVE = DraftCosts((1, 4, 5), (1.0, 1.0, 1.0), ((0.9, 0.9, 9.0), (0.9, 0.9, 9.0), (2.0, 3.0, 9.0)))


def with_heads(tmp_path: Path, family: str = "mimo_v2_flash", count: int = 1) -> Any:
    """A tiny model with heads that are random, and biased towards what the model often writes."""
    path = make_model(tmp_path, family)
    model = load_whole(path, dtype=torch.float32).eval()
    attach(model, make_heads(path, model, count, seed=1))
    return model


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, int(rng.integers(1, 15))).tolist() for _ in range(n)]


def assert_same(plain: list[Completion], guessed: list[Completion]) -> None:
    for a, b in zip(plain, guessed, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.finish == b.finish
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        if a.support_ids is not None:
            assert b.support_ids is not None
            assert a.support_ids.tolist() == b.support_ids.tolist()


@pytest.mark.parametrize("family", ["mimo_v2_flash", "deepseek_v3"])
@pytest.mark.parametrize("greedy", [False, True])
def test_guesses_change_no_token_and_no_support(tmp_path: Path, family: str, greedy: bool) -> None:
    model, asked = with_heads(tmp_path, family), prompts(12)
    how = replace(HOW, greedy=greedy, support=None if greedy else Support(2, (1,), "student"), vocabulary=60)
    plain = generate(model, asked, range(12), how)
    for k in (1, 2, 3):
        guessed = generate(model, asked, range(12), replace(how, drafts=Drafts(k)))
        assert_same(plain, guessed)
        counts = total_counts(c.drafts for c in guessed)
        assert counts is not None
        assert counts.tokens == sum(len(c.token_ids) for c in guessed)
        # A right guess that ends its row is followed by nothing.
        assert 0 <= counts.forwards + sum(counts.accepted) - counts.tokens <= 12
        assert counts.tokens > counts.forwards


def test_recorded_log_probabilities_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    model, asked = with_heads(tmp_path), prompts(6)
    how = replace(HOW, temperature=0.7, drafts=Drafts(3))
    for prompt, row in zip(asked, generate(model, asked, range(6), how), strict=True):
        ids_1T = torch.tensor([[*prompt, *row.token_ids.tolist()]])
        with torch.no_grad():
            logprobs_TV = (align_logits(model(input_ids=ids_1T, use_cache=False).logits)[0] / 0.7).log_softmax(-1)
        expected_T = logprobs_TV.gather(1, ids_1T[0][:, None])[:, 0]
        np.testing.assert_allclose(row.logprobs, expected_T[len(prompt) :], atol=1e-4)


def test_few_rows_are_guessed_for_and_many_are_not(tmp_path: Path) -> None:
    """By costs that pay for fewer than five rows: a batch begins without guesses, and its tail has them."""
    model, asked = with_heads(tmp_path), prompts(9)
    how = replace(HOW, drafts=Drafts(3, PAYS_BELOW_FIVE), end_token_ids=tuple(range(1, 8)))
    plain, guessed = (generate(model, asked, range(9), h) for h in (replace(how, drafts=None), how))
    assert_same(plain, guessed)
    lengths = sorted(len(c.token_ids) for c in plain)
    with_counts = [c for c in guessed if c.drafts is not None and c.drafts.forwards]
    assert 0 < len(with_counts) <= 4
    for completion in with_counts:
        assert completion.drafts is not None
        assert completion.drafts.tokens == len(completion.token_ids) - lengths[9 - 5]


def test_guesses_that_are_never_right_are_given_up_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = with_heads(tmp_path), prompts(6)
    monkeypatch.setattr(drafts, "PRIOR_WEIGHT", 1.0)
    costs = DraftCosts((1, 64), (1.0, 1.0), ((1.1, 1.2, 1.3), (1.1, 1.2, 1.3)))
    how = replace(HOW, drafts=Drafts(3, costs), max_new_tokens=40, end_token_ids=(-1,))
    guessed = total_counts(c.drafts for c in generate(model, asked, range(6), replace(how, greedy=True)))
    assert guessed is not None
    assert guessed.offered[0] < guessed.forwards / 2  # most rounds had none
    sequence = itertools.cycle([3, 0, 2, 1, 0, 3])
    monkeypatch.setattr(Speculation, "guesses", lambda _self: next(sequence))
    assert_same(generate(model, asked, range(6), replace(how, drafts=None)), generate(model, asked, range(6), how))


def test_costs_say_how_many_guesses_pay() -> None:
    costs = DraftCosts((1, 64), (1.0, 4.0), ((1.2, 1.4, 1.6), (8.0, 12.0, 16.0)))
    assert costs.best(1, [0.9, 0.9, 0.9]) == 3
    assert costs.best(1, [0.9, 0.1, 0.1]) == 1
    assert costs.best(1, [0.1, 0.9, 0.9]) == 0
    assert costs.best(64, [0.9, 0.9, 0.9]) == costs.best(1000, [0.9, 0.9, 0.9]) == 0
    # Half way between 1 and 64: 2 s without, and 3.1, 4.1, 5.06 s for 1.95, 2.85, 3.71 tokens.
    assert costs.best(8, [0.95, 0.95, 0.95]) == 3
    assert costs.best(8, [0.95, 0.1, 0.1]) == 1
    assert costs.best(8, [0.95, 0.8, 0.1]) == 2


def test_guesses_that_pay_by_less_than_measuring_can_tell_are_not_begun_and_not_ended() -> None:
    costs = DraftCosts((1, 64), (1.0, 1.0), ((1.75,), (1.85,)))
    assert costs.best(1, [0.9]) == 0  # 1.9 tokens in 1.75 s: 1.086 times as fast
    assert costs.best(1, [0.9], margin=1.0) == 1
    assert costs.best(1, [0.99]) == 1


def test_a_tail_is_taken_over_where_what_is_left_of_it_pays_for_reading_it_once_more() -> None:
    costs = DraftCosts((1, 64), (1.0, 1.0), ((1.0,), (1.0,)), takeover=(4.0, 16.0))
    # A token in half a second saves half of each: 8 tokens pay for one row, 32 for 64.
    assert [costs.takeover_pays(1, [1.0], n) for n in (7, 9)] == [False, True]
    assert [costs.takeover_pays(64, [1.0], n) for n in (31, 33)] == [False, True]
    assert replace(costs, takeover=None).takeover_pays(64, [1.0], 1)
    assert not costs.takeover_pays(1, [0.05], 10_000)


def test_costs_are_measured_once_and_a_resumed_run_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "MEASURED_ROWS", (1, 2))
    record = tmp_path / "costs.json"
    model = with_heads(tmp_path)
    how = replace(HOW, drafts=Drafts(2, measured=True, record=str(record)), max_new_tokens=4)
    asked = [Prompt("math", str(i), tuple(ids), "", "") for i, ids in enumerate(prompts(3))]

    def written() -> tuple[StudentSampler, list[list[int]]]:
        sampler = StudentSampler(how, samples_per_prompt=1, batch_size=2)
        sampler.load_weights(InProcess(model), version=0)
        return sampler, [r.token_ids.tolist() for batch in sampler.sample(asked, step=5) for r in batch]

    first, tokens = written()
    held = first._decoding.drafts
    assert held is not None
    assert held.costs is not None
    assert held.costs.rows == (1, 2)
    assert held.costs.takeover is not None
    assert all(s > 0 for row in (held.costs.plain, held.costs.takeover, *held.costs.rounds) for s in row)
    monkeypatch.setattr(drafts, "measure_costs", lambda *_: pytest.fail("measured again"))
    second, again = written()
    assert second._decoding.drafts == held
    assert tokens == again
    attach(model, None)
    assert written()[1] == tokens  # nothing to guess with


def test_ranks_that_keep_pace_write_without_guesses(tmp_path: Path) -> None:
    model = with_heads(tmp_path)
    assert not drafts.can_draft(model, replace(HOW, drafts=Drafts(3), lockstep=True))
    assert drafts.can_draft(model, replace(HOW, drafts=Drafts(3)))


def test_the_canary_sees_a_sampler_that_takes_every_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = InProcess(with_heads(tmp_path))
    how = replace(HOW, drafts=Drafts(3))
    assert check_sampler(weights, how, named="it") < canary.TOLERANCE[torch.float32]
    monkeypatch.setattr(Speculation, "_right", staticmethod(lambda tokens, _guesses: torch.ones_like(tokens) > 0))
    with pytest.raises(UserError, match="sampled wrongly"):
        check_sampler(weights, how, named="it")


def test_a_worker_takes_on_heads_that_its_checkpoint_has_not(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    student = load_whole(path, dtype=torch.float32).eval()
    heads = make_heads(path, student, 2, seed=4)
    attach(student, heads)
    worker = SamplerWorker("cpu", "float32")
    worker.load(FrozenModel(path), None, True)
    state = {**student.state_dict(), **heads.tensors()}
    worker.publish({name: as_array(tensor) for name, tensor in state.items()}, 3)
    how = replace(HOW, drafts=Drafts(3))
    assert_same(generate(student, prompts(4), range(4), how), worker.call(generate, (prompts(4), range(4), how)))
    counts = [total_counts(c.drafts for c in generate(m, prompts(4), range(4), how)) for m in (student, worker.model)]
    assert counts[0] == counts[1] is not None


# ---- the distribution

TINY_END, TINY_VOCABULARY, TINY_LENGTH = 2, 6, 4


@pytest.fixture(scope="module")
def tiny() -> Any:
    """Six tokens, a window of 3, a mixture of experts; heads that are as random as the model."""
    torch.manual_seed(3)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = MiMoV2FlashConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        v_head_dim=16,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        sliding_window=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters={"full_attention": dict(rope), "sliding_attention": dict(rope)},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=TINY_END,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model: Any = MiMoV2FlashForCausalLM(config).eval()
    heads = DraftHeads(model, 1)
    heads.initialise(0)
    attach(model, heads.eval())
    return model


@torch.no_grad()
def enumerated(model: Any, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every completion, one forward of a whole sequence after the other."""

    def grow(written: tuple[int, ...], chance: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if written and (written[-1] == TINY_END or len(written) == TINY_LENGTH):
            yield written, chance
            return
        logits_V: Tensor = model(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]
        for token, p in enumerate(logits_V.double().softmax(-1).tolist()):
            yield from grow((*written, token), chance * p)

    return dict(grow((), 1.0))


def p_value(model: Any, prompt: list[int], expected: dict[tuple[int, ...], float], k: int, n: int) -> float:
    """Of a chi-square test of ``n`` samples against what is expected of them."""
    how = Decoding(TINY_LENGTH, 1.0, False, 11, k, (TINY_END,), 0, drafts=Drafts(k) if k else None)
    seen: Counter[tuple[int, ...]] = Counter()
    for start in range(0, n, 2000):
        rows = generate(model, [prompt] * 2000, range(start, start + 2000), how)
        seen.update(tuple(row.token_ids.tolist()) for row in rows)
    cells = [written for written, p in expected.items() if p * n >= 10]
    counts, means = [seen[c] for c in cells], [n * expected[c] for c in cells]
    counts, means = [*counts, n - sum(counts)], [*means, n - sum(means)]
    assert len(cells) > 50
    result = stats.chisquare(counts, means)
    print(f"k={k}: {len(cells)} cells, chi2/df {result.statistic / len(cells):.3f}, p {result.pvalue:.3g}")
    return float(result.pvalue)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_every_completion_is_as_likely_as_enumeration_says(tiny: Any, k: int) -> None:
    prompt = [1, 4, 5, 3, 4]
    expected = enumerated(tiny, prompt)
    assert sum(expected.values()) == pytest.approx(1.0)
    assert p_value(tiny, prompt, expected, k, 20_000) > 1e-3


def test_the_test_of_the_distribution_can_fail(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every guess is taken for right, so that what follows it was drawn after another token."""
    monkeypatch.setattr(Speculation, "_right", staticmethod(lambda tokens, _guesses: torch.ones_like(tokens) > 0))
    prompt = [1, 4, 5, 3, 4]
    assert p_value(tiny, prompt, enumerated(tiny, prompt), 3, 20_000) < 1e-12

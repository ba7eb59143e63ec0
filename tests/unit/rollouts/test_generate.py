"""Generation against oracles: a naive loop without a cache, the distribution itself, and other batches."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from student_kit import FAMILIES, VOCABULARY, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.payloads import Support
from mopd.distill.types import Prompt, align_logits
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import generate, keyed_uniforms
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.sampler import GoldSampler

EOS, PAD = 1, 0


def how(**changes):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "greedy": False, "seed": 3, "step": 5}
    return Decoding(**{**settings, **changes}, end_token_ids=(EOS,), pad_token_id=PAD)


def load(tmp_path, family="mimo_v2_flash"):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family)).eval()


def prompts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, int(rng.integers(1, 15))).tolist() for _ in range(n)]


def naive_greedy(model, prompt, n):
    """Straight from the definition: one whole forward a token, no cache, no padding."""
    ids, logprobs = list(prompt), []
    for _ in range(n):
        with torch.no_grad():
            row = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        ids.append(int(row.argmax()))
        logprobs.append(float(row.log_softmax(-1)[ids[-1]]))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_equals_a_naive_loop_without_a_cache(tmp_path, family):
    model, asked = load(tmp_path, family), prompts(6)
    for prompt, completion in zip(asked, generate(model, asked, range(6), how(greedy=True)), strict=True):
        ids, logprobs = naive_greedy(model, prompt, 12)
        assert completion.token_ids.tolist() == ids
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
        assert completion.finish == ("eos" if ids[-1] == EOS else "length")


def test_any_of_several_end_tokens_ends_a_completion(tmp_path):
    model, asked = load(tmp_path, "llama"), prompts(64)
    ends = (EOS, *range(20, 30))
    written = generate(model, asked, range(64), replace(how(), end_token_ids=ends))
    assert {c.finish for c in written} == {"eos", "length"}
    for completion in written:
        ended = np.isin(completion.token_ids, ends)
        assert not ended[:-1].any()
        assert completion.finish == ("eos" if ended[-1] else "length")
    assert any(c.token_ids[-1] != EOS for c in written if c.finish == "eos")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_model(tmp_path, temperature):
    model, asked = load(tmp_path), prompts(8)
    for prompt, completion in zip(asked, generate(model, asked, range(8), how(temperature=temperature)), strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids.tolist()]])
        with torch.no_grad():
            row_TV = (align_logits(model(input_ids=ids).logits)[0].double() / temperature).log_softmax(-1)
        expected = row_TV.gather(1, ids[0].unsqueeze(1)).squeeze(1)[len(prompt) :]
        np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-4)


def test_tokens_come_from_the_models_distribution(tmp_path):
    model, prompt, n = load(tmp_path), [5, 9, 20], 4000
    with torch.no_grad():
        p_V = (model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / 0.5).softmax(-1).numpy()
    drawn = generate(model, [prompt] * n, range(n), how(max_new_tokens=1, temperature=0.5))
    observed_V = np.bincount([int(c.token_ids[0]) for c in drawn], minlength=VOCABULARY)
    assert stats.chisquare(observed_V, n * p_V / p_V.sum()).pvalue > 1e-3
    uniform = stats.chisquare(observed_V)
    assert uniform.pvalue < 1e-3, "the test has no power: the model's distribution is too flat"


def test_randomness_is_keyed_by_rollout_and_not_by_batch(tmp_path):
    model, asked = load(tmp_path), prompts(9)
    together = generate(model, asked, range(9), how())
    for indices in ([0], [8, 3], [4, 5, 6, 7]):
        apart = generate(model, [asked[i] for i in indices], indices, how())
        for i, completion in zip(indices, apart, strict=True):
            assert completion.token_ids.tolist() == together[i].token_ids.tolist()
    other_step = generate(model, asked, range(9), how(step=6))
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(together, other_step, strict=True))


def rows_of_forwards(model):
    """Grows by the number of rows of each forward."""
    rows = []
    model.register_forward_pre_hook(lambda _m, _a, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    return rows


def load_any(tmp_path, family):
    """Families of the training tests, and a recurrent one."""
    if family != "mamba":
        return load(tmp_path, family)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval()


@pytest.mark.parametrize("family", ["mimo_v2_flash", "llama", "mamba"])
def test_samples_of_a_prompt_are_read_once(tmp_path, family):
    model, two = load_any(tmp_path, family), prompts(2, seed=4)
    asked = [two[i // 3 % 2] for i in range(12)]
    apart = [generate(model, [prompt], [i], how())[0] for i, prompt in enumerate(asked)]
    rows = rows_of_forwards(model)
    together = generate(model, asked, range(12), how())
    assert rows[:2] == [2, 12]
    for a, b in zip(apart, together, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    assert len({tuple(one.token_ids.tolist()) for one in together}) > 6, "samples differ"


def test_rows_go_when_a_quarter_has_ended(tmp_path):
    model = load(tmp_path)
    written = {}
    for ends in ((EOS,), (EOS, *range(20, 36))):
        rows = rows_of_forwards(model)
        written[ends] = generate(model, prompts(40), range(40), replace(how(max_new_tokens=24), end_token_ids=ends))
        assert rows[0] == 40
        for before, after in itertools.pairwise(rows):
            assert after == before or after <= 0.75 * before
        lengths = sorted(len(one.token_ids) for one in written[ends])
        assert len(rows) == lengths[-1]
        for t, n in enumerate(rows):
            alive = sum(length > t for length in lengths)
            assert alive <= n
            assert alive > 0.75 * n or n == 1
    whole, cut = written.values()
    assert len(set(rows)) > 3
    for a, b in zip(whole, cut, strict=True):
        n = len(b.token_ids)
        assert a.token_ids[:n].tolist() == b.token_ids.tolist()
        np.testing.assert_allclose(a.logprobs[:n], b.logprobs, atol=1e-5)


def test_keys_do_not_collide():
    keys = [(seed, step, rollout) for seed in (0, 1) for step in (0, 1, 2**20) for rollout in (0, 1, 2**20)]
    first = [keyed_uniforms(seed=s, step=t, rollout=r, n=1)[0] for s, t, r in keys]
    assert len(set(first)) == len(keys)


def test_completions_end_at_eos_and_at_the_limit(tmp_path):
    model = load(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 8  # an EOS that is often likely, and often not
    drawn = generate(model, prompts(40), range(40), how())
    assert {c.finish for c in drawn} == {"eos", "length"}
    for completion in drawn:
        ids = completion.token_ids.tolist()
        assert (ids[-1] == EOS) == (completion.finish == "eos")
        assert EOS not in ids[:-1]
        assert len(ids) == 12 or completion.finish == "eos"


class OneProcess:
    """Weights in this process, seen through the door of ``ranks`` ranks."""

    def __init__(self, model, ranks=1):
        self.model, self.ranks = model, ranks

    def on_ranks(self, fn, per_rank):
        return [fn(self.model, *args) for args in per_rank]


def as_prompts(asked):
    return [Prompt("math", f"q{i}", tuple(ids), "?", "!") for i, ids in enumerate(asked)]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 100), (2, 100), (3, 2), (1, 4)])
def test_rollouts_do_not_depend_on_ranks_or_batches(tmp_path, ranks, batch_size):
    model, asked = load(tmp_path), as_prompts(prompts(7))
    reference = StudentSampler(how(), samples_per_prompt=2, batch_size=100)
    reference.load_weights(OneProcess(model), version=5)
    expected = [r for microbatch in reference.sample(asked, step=5) for r in microbatch]
    sampler = StudentSampler(how(), samples_per_prompt=2, batch_size=batch_size)
    sampler.load_weights(OneProcess(model, ranks), version=5)
    microbatches = list(sampler.sample(asked, step=5))
    assert all(len(m) <= ranks * batch_size for m in microbatches)
    rollouts = [r for microbatch in microbatches for r in microbatch]
    assert [r.index for r in rollouts] == list(range(14))
    assert [r.group for r in rollouts] == [i // 2 for i in range(14)]
    for rollout, other in zip(rollouts, expected, strict=True):
        assert rollout.token_ids.tolist() == other.token_ids.tolist()
        assert rollout.version == (5, 5)
        assert rollout.loss_mask.sum() == len(rollout.token_ids) - len(rollout.prompt.token_ids)
        assert (rollout.sampler_logprobs[rollout.loss_mask] < 0).all()


def test_greedy_sampling_writes_one_rollout_a_prompt(tmp_path):
    sampler = StudentSampler(how(), samples_per_prompt=3, batch_size=4)
    sampler.load_weights(OneProcess(load(tmp_path)), version=0)
    (microbatch,) = sampler.sample(as_prompts(prompts(4)), step=0, greedy=True)
    assert [r.prompt.id for r in microbatch] == ["q0", "q1", "q2", "q3"]


def test_a_sampler_without_weights_says_so():
    with pytest.raises(RuntimeError, match="no weights"):
        next(StudentSampler(how(), samples_per_prompt=1, batch_size=4).sample(as_prompts(prompts(1)), step=0))


def test_gold_sampler_writes_the_answer_and_eos():
    sampler = GoldSampler(lambda answer: [*map(ord, answer), EOS])
    sampler.load_weights(OneProcess(None), version=2)
    (rollouts,) = sampler.sample(as_prompts([[7, 8]]), step=2)
    assert rollouts[0].token_ids.tolist() == [7, 8, ord("!"), EOS]
    assert rollouts[0].loss_mask.tolist() == [False, False, True, True]


def test_the_students_likeliest_tokens_are_recorded_where_it_wrote(tmp_path):
    """From a whole forward over each rollout; the prompt's positions hold anything, and greedy answers carry none."""
    model, asked = load(tmp_path), prompts(5)
    support = Support(3, (EOS, 7), "union")
    sampler = StudentSampler(how(support=support), samples_per_prompt=2, batch_size=4)
    sampler.load_weights(InProcess(model), version=0)
    given = [Prompt("math", str(i), tuple(ids), "", "") for i, ids in enumerate(asked)]
    for rollout in (r for microbatch in sampler.sample(given, step=5) for r in microbatch):
        assert rollout.support_ids.shape == (len(rollout.token_ids), 5)
        with torch.no_grad():
            rows_TV = align_logits(model(input_ids=torch.tensor(rollout.token_ids[None]).long()).logits)[0]
        for t in np.flatnonzero(rollout.loss_mask):
            order = [v for v in rows_TV[t].argsort(descending=True).tolist() if v not in support.forced]
            assert sorted(rollout.support_ids[t].tolist()) == sorted([*order[:3], *support.forced])
    (first, *_) = sampler.sample(given, step=5, greedy=True)
    assert first[0].support_ids is None

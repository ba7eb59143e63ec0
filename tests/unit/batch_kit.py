"""Small scored rollouts of two domains, a pure function of their numbers."""

import numpy as np

from distill.types import Full, Prompt, Rollout, Sampled, ScoredRollout, TeacherScore

V = 9
SHARES = {"math": 1.0, "code": 3.0}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def scored(index, domain, *, prompt=3, answer=4, teachers=1, seed=None) -> ScoredRollout:
    rng = np.random.default_rng(index if seed is None else seed)
    tokens = rng.integers(2, V, prompt + answer).astype(np.int32)
    trained = np.arange(prompt + answer) >= prompt
    rollout = Rollout(
        prompt=Prompt(domain, f"{domain}/{index}", tuple(tokens[:prompt].tolist()), "", ""),
        token_ids=tokens,
        loss_mask=trained,
        sampler_logprobs=rng.normal(-2, 0.3, prompt + answer).astype(np.float32),
        finish="eos",
        version=0,
        group=index,
        index=index,
    )
    weights = {1: [1.0], 2: [0.25, 0.75]}[teachers]
    scores = [
        TeacherScore(f"t{k}", Full(log_softmax(rng.normal(size=(len(tokens), V))).astype(np.float32)))
        for k in range(teachers)
    ]
    return ScoredRollout(rollout, tuple(zip(weights, scores, strict=True)), reward=float(rng.random() < 0.5))


def mixed_batch(n=17, seed=0) -> list[ScoredRollout]:
    rng = np.random.default_rng(seed)
    domains = ["math", "code", "math"]  # twice as many of one
    return [
        scored(i, domains[i % 3], prompt=int(rng.integers(1, 6)), answer=int(rng.integers(1, 12)), seed=seed * 100 + i)
        for i in range(n)
    ]


def as_sampled(rollout: ScoredRollout) -> ScoredRollout:
    rows = np.arange(len(rollout.rollout.token_ids))
    scores = tuple(
        (w, TeacherScore(s.teacher, Sampled(s.payload.logprobs_TV[rows, rollout.rollout.token_ids])))
        for w, s in rollout.scores
    )
    return ScoredRollout(rollout.rollout, scores, rollout.reward)

"""Small scored rollouts of two domains, a pure function of their numbers."""

import numpy as np

from mopd.distill.types import Chunked, Full, Prompt, Rollout, Sampled, ScoredRollout, TeacherScore, TopK

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
        version=(0, 0),
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


def as_topk(rollout: ScoredRollout, *, k=3, forced=1) -> ScoredRollout:
    """The teachers' likeliest ``k`` tokens besides ``forced``, and that one, row by row."""

    def cut(full_TV, token_ids):
        rows = []
        for row_V, y in zip(full_TV.astype(np.float64), token_ids, strict=True):
            ids = [*sorted((v for v in range(V) if v != forced), key=lambda v, row_V=row_V: -row_V[v])[:k], forced]
            rest = np.log(sum(np.exp(row_V[v]) for v in range(V) if v not in ids))
            rows.append((ids, row_V[ids], rest, row_V[y]))
        ids, logprobs, rest, sampled = (np.array(column) for column in zip(*rows, strict=True))
        return TopK(ids.astype(np.int32), *(x.astype(np.float32) for x in (logprobs, rest, sampled)))

    scores = tuple(
        (w, TeacherScore(s.teacher, cut(s.payload.logprobs_TV, rollout.rollout.token_ids))) for w, s in rollout.scores
    )
    return ScoredRollout(rollout.rollout, scores, rollout.reward)


def as_chunked(rollout: ScoredRollout) -> ScoredRollout:
    """The same by chunks of three tokens, fewer in the last one: the first of each as :func:`as_topk` has it."""
    n, prompt = len(rollout.rollout.token_ids), len(rollout.rollout.prompt.token_ids)
    place = np.arange(n) - prompt
    others = (place >= 0) & (place % 3 > 0)

    def chunks(topk: TopK) -> Chunked:
        unused = np.where(others[:, None], -np.inf, topk.logprobs_TK).astype(np.float32)
        chunk = np.where(others, place // 3, -1).astype(np.int32)
        owed = np.array([topk.sampled_T[chunk == number].sum() if number >= 0 else 0.0 for number in chunk])
        return Chunked(topk.ids_TK, unused, topk.rest_T, topk.sampled_T, chunk, owed.astype(np.float32))

    scores = tuple((w, TeacherScore(s.teacher, chunks(s.payload))) for w, s in as_topk(rollout).scores)
    return ScoredRollout(rollout.rollout, scores, rollout.reward)


def cut_for(payload, rollout: ScoredRollout) -> ScoredRollout:
    """The same rollout, its teachers' whole distributions cut down to a payload."""
    return {"sampled": as_sampled, "topk": as_topk, "chunked": as_chunked}.get(payload, lambda same: same)(rollout)

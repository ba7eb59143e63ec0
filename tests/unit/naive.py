"""References written from the definitions, with loops in float64; nothing of ours is imported."""

import math


def softmax(logits):
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [e / math.fsum(exps) for e in exps]


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def jensen_shannon(p, q, beta):
    """GKD's eq 1 with the student p and the teacher q; its two ends by definition."""
    if beta in (0, 1):
        return kl(q, p) if beta == 0 else kl(p, q)
    m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def topk_left_out(p, q, support):
    """arXiv 2606.30406, eq 5."""
    return math.fsum(p[v] * math.log(p[v] / q[v]) - p[v] + q[v] for v in support)


def topk_bucket(p, q, support):
    """The KL of the distributions in which all tokens outside of the support are one."""
    inside = kl([p[v] for v in support], [q[v] for v in support])
    outside = [v for v in range(len(p)) if v not in support]
    return inside + (kl([math.fsum(p[v] for v in outside)], [math.fsum(q[v] for v in outside)]) if outside else 0.0)


def numeric_gradient(function, logits, step=1e-5):
    """Central differences of a scalar function of a list."""
    out = []
    for i in range(len(logits)):
        up = [x + step * (i == j) for j, x in enumerate(logits)]
        down = [x - step * (i == j) for j, x in enumerate(logits)]
        out.append((function(up) - function(down)) / (2 * step))
    return out


def score(p, v):
    """Gradient of log p(v) with respect to the logits of p."""
    return [(j == v) - p[j] for j in range(len(p))]


def expectation(p, vector_of):
    """sum_v p(v) vector_of(v), entry by entry."""
    return [math.fsum(p[v] * vector_of(v)[j] for v in range(len(p))) for j in range(len(p))]


def reverse_kl_gradient(p, q):
    return numeric_gradient(lambda z: kl(softmax(z), q), [math.log(a) for a in p])


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

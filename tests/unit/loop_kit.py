"""A student that counts and an actor that repeats: the smallest parts of a loop."""

from __future__ import annotations

import numpy as np

from mopd.distill.types import Prompt, Rollout


class Counter:
    """A student whose weight counts its updates; checkpoints are remembered numbers."""

    def __init__(self, saved=()):
        self.saved, self.weight, self.updated = list(saved), 0, []

    def load_latest(self):
        self.weight = max(self.saved, default=0)
        return self.weight

    def weights(self):
        return self.weight

    def update(self, batch, *, step):
        assert all(s.rollout.version == (step, step) and step == self.weight for s in batch), "acted with other weights"
        self.updated.append((step, [s.rollout.prompt.id for s in batch]))
        self.weight += 1
        return {"loss": 1.0 / self.weight}

    def worked(self):
        return [0.0, 0.0]

    def save(self, step):
        assert step == self.weight
        self.saved.append(step)


class Actor:
    def load_weights(self, weights, *, version):
        assert weights == version
        self.version = version

    def sample(self, prompts, *, step, greedy=False):
        for index, prompt in enumerate(prompts):
            ids = np.array([*prompt.token_ids, 9], dtype=np.int32)
            mask = np.array([False] * len(prompt.token_ids) + [True])
            yield [
                Rollout(
                    prompt, ids, mask, np.zeros(len(ids), np.float32), "eos", (self.version, self.version), index, index
                )
            ]


def prompts(step):
    return [Prompt("math", f"{step}/{i}", (1, 2), "?", "!") for i in range(2)]

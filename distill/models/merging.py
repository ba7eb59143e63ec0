"""Parameter merging: several models of one base added up into one, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def merge_weights(
    base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]], strength: float
) -> dict[str, Tensor]:
    """``theta_0 + strength * sum_k (theta_k - theta_0)``, summed in float64 and given back in the base's dtypes.

    A strength of 1/K is the models' average. What is no floating-point number must be the same in all.

    Args:
        base: what the models were made from.
        models: K models with the base's names and shapes.
        strength: lambda, without a unit.

    Raises:
        ValueError: a model has other names or shapes than the base, or another value of what can't be added up.

    Source: task arithmetic, Ilharco et al., arXiv 2212.04089, section 4.2; the average is that of model soups,
        Wortsman et al., arXiv 2203.05482, eq 1.
    """
    for k, model in enumerate(models):
        if model.keys() != base.keys():
            other = sorted(model.keys() ^ base.keys())[:3]  # not per token
            raise ValueError(f"model {k} and the base differ in {', '.join(other)}: models of one base are needed")
    merged: dict[str, Tensor] = {}
    for name, start in base.items():
        tensors = [model[name] for model in models]
        unlike = [k for k, tensor in enumerate(tensors) if tensor.shape != start.shape]
        if unlike:
            raise ValueError(
                f"{name} of model {unlike[0]} is {list(tensors[unlike[0]].shape)}, of the base {list(start.shape)}"
            )
        if not start.is_floating_point():
            if any(not torch.equal(tensor, start) for tensor in tensors):
                raise ValueError(
                    f"{name} holds {start.dtype}, and models have other values of it: it can't be added up"
                )
            merged[name] = start.clone()
            continue
        origin = start.double()
        taken = torch.zeros_like(origin)
        for tensor in tensors:
            taken += tensor.double() - origin
        merged[name] = (origin + strength * taken).to(start.dtype)
    return merged

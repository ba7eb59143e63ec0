"""Merging weights: against loops over single numbers, and refusals."""

import pytest
import torch

from mopd.distill.models.merging import merge_weights


def models(k: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A base and k models made from it; a whole-numbered buffer is the same in all."""
    rng = torch.Generator().manual_seed(0)

    def one() -> dict[str, torch.Tensor]:
        return {
            "w": torch.randn(3, 2, generator=rng),
            "b": torch.randn(4, generator=rng).bfloat16(),
            "n": torch.arange(3),
        }

    return one(), [one() for _ in range(k)]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_every_number_is_the_base_and_the_scaled_sum_of_what_was_taken(strength: float) -> None:
    base, specialists = models(3)
    merged = merge_weights(base, specialists, strength)
    assert {name: one.dtype for name, one in merged.items()} == {name: one.dtype for name, one in base.items()}
    for name in ("w", "b"):
        for i, start in enumerate(base[name].flatten().tolist()):
            theirs = [model[name].flatten()[i].item() for model in specialists]
            expected = start + strength * sum(value - start for value in theirs)
            told = torch.tensor(expected, dtype=base[name].dtype).item()
            assert merged[name].flatten()[i].item() == pytest.approx(told, rel=1e-6, abs=1e-7)
    assert torch.equal(merged["n"], base["n"])


def test_a_strength_of_one_over_k_is_the_average_and_one_model_at_one_is_itself() -> None:
    base, specialists = models(4)
    average = merge_weights(base, specialists, 1 / 4)["w"]
    torch.testing.assert_close(average, torch.stack([model["w"] for model in specialists]).mean(0))
    torch.testing.assert_close(merge_weights(base, specialists[:1], 1.0)["w"], specialists[0]["w"])


def test_models_that_are_not_of_one_base_are_refused() -> None:
    base, (one, other) = models(2)
    with pytest.raises(ValueError, match="model 1 and the base differ in b"):
        merge_weights(base, [one, {name: value for name, value in other.items() if name != "b"}], 0.5)
    with pytest.raises(ValueError, match=r"w of model 0 is \[2, 3\], of the base \[3, 2\]"):
        merge_weights(base, [{**one, "w": one["w"].T}, other], 0.5)
    with pytest.raises(ValueError, match=r"n holds torch\.int64"):
        merge_weights(base, [one, {**other, "n": torch.ones(3, dtype=torch.int64)}], 0.5)

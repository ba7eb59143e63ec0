"""Checkpoints that are not whole are refused: by the headers before a run, and by whoever loads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_kit import DENSE, FAMILIES, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.load import load_model, load_whole
from mopd.distill.types import UserError
from mopd.recipes.resolve.checkpoints import check_weights, empty_model

NAME = "model.safetensors"
INDEX = f"{NAME}.index.json"


def check(folder: Path) -> list[str]:
    return check_weights(folder, empty_model(AutoConfig.from_pretrained(folder))[0])


def refused(folder: Path) -> str:
    """What the headers say, which loading must refuse as well."""
    with pytest.raises(UserError):
        load_whole(folder, dtype=torch.float32)
    with pytest.raises(UserError) as caught:
        check(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_model(models, "llama"), tmp_path / "llama"))


@pytest.fixture
def shards(folder: Path) -> list[Path]:
    """The same checkpoint in several files."""
    model = load_model(folder, device="cpu", dtype="float32")
    (folder / NAME).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    found = sorted(folder.glob("*.safetensors"))
    assert len(found) > 1
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_passes_and_one_without_a_weight_does_not(models: Path, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(make_model(models, family), tmp_path / family))
    check(folder)
    load_model(folder, device="cpu", dtype="float32")
    weights = load_file(folder / NAME)
    inside = next(key for key in weights if "experts.0." in key or (family in DENSE and "up_proj" in key))
    for lost in (inside, "model.norm.weight"):
        save_file({key: value for key, value in weights.items() if key != lost}, folder / NAME, {"format": "pt"})
        told = refused(folder)
        assert "experts" in told or "weights of other shapes" in told or lost in told


def test_a_weight_of_another_shape_is_named(folder: Path) -> None:
    weights = load_file(folder / NAME)
    save_file({**weights, "model.norm.weight": torch.ones(5)}, folder / NAME, {"format": "pt"})
    assert "model.norm.weight is [5] and not [32]" in refused(folder)


def test_tied_weights_are_not_missed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **sizes, vocab_size=12, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / NAME)
    check(tmp_path)
    load_model(tmp_path, device="cpu", dtype="float32")


def test_every_shard_must_be_there(folder: Path, shards: list[Path]) -> None:
    check(folder)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"shards that {INDEX} names are missing, for example {shards[1].name}"):
        check(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        check(folder)


def test_a_file_that_was_cut_short_is_named(folder: Path) -> None:
    whole = (folder / NAME).read_bytes()
    for length in (0, 100, len(whole) - 1):
        (folder / NAME).write_bytes(whole[:length])  # not per token
        with pytest.raises(UserError, match="cannot be read"):
            check(folder)


def test_weights_of_a_pickle_are_compared_too(folder: Path) -> None:
    weights = load_file(folder / NAME)
    (folder / NAME).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    check(folder)
    torch.save(
        {key: value for key, value in weights.items() if key != "model.norm.weight"}, folder / "pytorch_model.bin"
    )
    assert "lacks 1 weights of its model (model.norm.weight)" in refused(folder)


def test_another_file_of_weights_is_no_checkpoint(folder: Path) -> None:
    (folder / NAME).rename(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds no weights"):
        check(folder)


@pytest.mark.parametrize("family", ["llama", "mimo_v2_flash", "deepseek_v3"])
def test_weights_that_the_model_has_no_place_for_are_named(models: Path, tmp_path: Path, family: str) -> None:
    """Draft heads under the names of the Hub, which transformers drops with a line of its log or without a word."""
    folder = Path(shutil.copytree(make_model(models, family), tmp_path / family))
    assert check(folder) == []
    name = {"deepseek_v3": "model.layers.61.eh_proj.weight"}.get(family, "model.mtp.layers.0.eh_proj.weight")
    weights = load_file(folder / NAME)
    save_file({**weights, name: torch.zeros(4, 4)}, folder / NAME, {"format": "pt"})
    assert check(folder) == [name]
    assert name not in load_model(folder, device="cpu", dtype="float32").state_dict()

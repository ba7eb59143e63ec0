"""What a configuration makes is found out once, and known again only where nothing has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from mopd.distill.types import UserError
from mopd.recipes.check import made_models
from mopd.recipes.check.made_models import CACHE, MadeModel, folder, made_model
from mopd.recipes.check.model_info import probe

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
MODELS = ["mimo_v2_flash", "qwen3_moe", "llama", "qwen3", "mixtral"]


def config_of(family: str, **more: Any) -> Any:
    return AutoConfig.for_model(family, vocab_size=64, intermediate_size=64, **{**SIZES, **more})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(config: Any) -> Any:
        raise AssertionError(f"{config.model_type} is made again")

    monkeypatch.setattr(made_models, "empty_model", none)


def made(config: Any) -> MadeModel:
    return made_model(config, probe=probe)


@pytest.mark.parametrize("family", MODELS)
def test_what_is_remembered_is_what_was_found_out(home: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    first, again = config_of(family), config_of(family)
    found = made(first)
    refused(monkeypatch)
    assert made(again) == found
    assert vars(again) == vars(first)
    assert len(list(home.rglob("*.json"))) == 1


def test_another_configuration_other_libraries_and_other_code_are_found_out_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(config_of("llama"))
    refused(monkeypatch)
    for more in ({"num_hidden_layers": 3}, {"head_dim": 8}, {"tie_word_embeddings": True}):
        with pytest.raises(AssertionError, match="made again"):
            made(config_of("llama", **more))
    with monkeypatch.context() as patch:
        patch.setattr(made_models, "version", lambda name: "0")
        made_models._code.cache_clear()
        with pytest.raises(AssertionError, match="made again"):
            made(config_of("llama"))
    made_models._code.cache_clear()
    made(config_of("llama"))


@pytest.mark.parametrize("damage", [b"", b"{", b'{"cost": 1}', b"\xff\xfe"])
def test_a_damaged_file_is_found_out_anew(home: Path, damage: bytes) -> None:
    found = made(config_of("llama"))
    (path,) = home.rglob("*.json")
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert made(config_of("llama")) == found
    assert path.read_bytes() == whole


def test_what_cannot_be_made_or_learn_is_never_remembered(home: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="drops everything"):
            made(config_of("llama", attention_dropout=1.0))
    assert not list(home.rglob("*.json"))


def test_where_nothing_can_be_written_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    assert made(config_of("llama")) == made(config_of("llama"))
    monkeypatch.setenv(CACHE, "")
    assert folder() is None
    made(config_of("llama"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_folder_is_the_users_own_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert folder() == Path("/caches/mopd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert folder() == Path("/home/somebody/.cache/mopd")

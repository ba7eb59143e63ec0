"""A run's student on its way to the Hub: what arrives is what lies on the disk, and what cannot go there is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from push_kit import TOKEN, Hub
from run_kit import write_run

from mopd.distill.storage import seal
from mopd.distill.types import RunError, UserError
from mopd.recipes.push_command import push


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # whose own protocol only the Hub itself speaks
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    served = Hub()
    yield served
    served.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder with a student whose weights are bytes of no meaning, and an adapter."""
    folder = write_run(tmp_path / "finished", n_test=30, n_validation=10)
    for part in ("student", "adapter"):
        (folder / part).mkdir()
        (folder / part / f"{'model' if part == 'student' else 'adapter_model'}.safetensors").write_bytes(
            os.urandom(9000)
        )
        (folder / part / "README.md").write_text(f"# {part}\n")
    (folder / "student" / "config.json").write_text("{}\n")
    (folder / "adapter" / "adapter_config.json").write_text("{}\n")
    for part in ("student", "adapter"):
        seal(folder / part)
    return folder


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_what_lies_on_the_disk(hub: Hub, run: Path) -> None:
    pushed = push(run, "somebody/model", endpoint=hub.url)
    besides = {name: (run / name).read_bytes() for name in ("recipe.yaml", "seesaw.json")}
    assert hub.files["somebody/model", "main"] == on_disk(run / "student") | besides
    assert hub.private == {"somebody/model": True}
    assert pushed.files == len(hub.files["somebody/model", "main"])
    assert pushed.bytes == sum(map(len, hub.files["somebody/model", "main"].values()))
    assert hub.commits[0]["summary"] == "finished, by mopd"
    assert push(run, "somebody/model", endpoint=hub.url).repo == "somebody/model"  # once more: it is there


def test_an_adapter_alone_on_a_branch_of_an_open_repository(hub: Hub, run: Path) -> None:
    push(run, "somebody/adapter", adapter=True, private=False, revision="second", endpoint=hub.url)
    assert hub.private == {"somebody/adapter": False}
    assert hub.files["somebody/adapter", "main"] == {}
    assert on_disk(run / "adapter").items() <= hub.files["somebody/adapter", "second"].items()


@pytest.mark.parametrize("spoilt", ["model.safetensors", "config.json"])
def test_bytes_that_change_on_the_way_are_noticed(hub: Hub, run: Path, spoilt: str) -> None:
    hub.spoils = spoilt
    with pytest.raises(RunError, match=f"{spoilt} arrived otherwise"):
        push(run, "somebody/model", endpoint=hub.url)


def test_what_cannot_go_there_is_said_before_anything_is_sent(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no run's folder"):
        push(tmp_path, "somebody/model", endpoint=hub.url)
    whole = (run / "student" / "model.safetensors").read_bytes()
    (run / "student" / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        push(run, "somebody/model", endpoint=hub.url)
    (run / "student" / "model.safetensors").write_bytes(whole)
    (run / "adapter").rename(run / "elsewhere")
    with pytest.raises(UserError, match="without --adapter"):
        push(run, "somebody/model", adapter=True, endpoint=hub.url)
    with pytest.raises(UserError, match="--repo a b/c"):
        push(run, "a b/c", endpoint=hub.url)
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(UserError, match="may write there"):
        push(run, "somebody/model", endpoint=hub.url)
    with pytest.raises(UserError, match="cannot be reached"):
        push(run, "somebody/model", endpoint="http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (run / "student" / "config.json").rename(run / "config.json")
    with pytest.raises(UserError, match="no student yet"):
        push(run, "somebody/model", endpoint=hub.url)
    assert hub.files == {}


def test_without_a_token_nothing_is_asked(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token"):
        push(run, "somebody/model", endpoint=hub.url)
    assert hub.private == {}


def test_the_command(hub: Hub, run: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("mopd")),
        "push",
        str(run),
        "--repo",
        "somebody/model",
        "--public",
        "--json",
        "-",
    ]
    done = subprocess.run(
        command, env={**os.environ, "HF_ENDPOINT": hub.url}, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(done.stdout)["repo"] == "somebody/model"
    assert hub.private == {"somebody/model": False}
    assert TOKEN not in done.stdout + done.stderr

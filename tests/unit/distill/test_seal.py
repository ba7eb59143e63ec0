"""A sealed folder proves that it is whole: every file that is flipped, cut, lost, emptied or exchanged is named."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from damage_kit import KINDS, PLACES, harm
from safetensors.numpy import save_file

from mopd.distill import storage


def make_folder(path: Path, *, seed: int) -> Path:
    """What a checkpoint looks like: large files and small ones, in folders."""
    rng = random.Random(seed)
    for i in range(8):
        file = path / ("deep" if i % 3 else "") / f"file-{i}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rng.randbytes(7 + 40_000 * (i % 2)))
    storage.seal(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_found_and_named(kind: str, tmp_path: Path) -> None:
    good, other = (make_folder(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert storage.damage(good) == storage.damage(other) == ()
    for place in range(PLACES):
        bad = Path(shutil.copytree(good, tmp_path / f"{kind}-{place}"))
        name = harm(bad, other, kind=kind, place=place)
        problems = storage.damage(bad)
        assert len(problems) == 1, (name, problems)
        assert name in problems[0]


def test_what_was_added_is_named_and_what_was_never_sealed_is_not_judged(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", seed=1)
    (folder / "deep" / "model.py").write_text("print('hello')")
    assert storage.damage(folder) == ("deep/model.py was not written with it",)
    for name in (storage.MANIFEST, storage.SEAL):
        (folder / name).unlink()
    assert not storage.is_sealed(folder)
    assert storage.damage(folder) == ()
    assert storage.damage(tmp_path / "none") == ("none is missing",)


def test_several_readers_read_every_byte_once(tmp_path: Path) -> None:
    """Each rank reads its part: together they find what one would, and none reads what another does."""
    folder = make_folder(tmp_path / "a", seed=1)
    for name in ("file-0.bin", "deep/file-1.bin", "deep/file-7.bin"):
        flipped = bytearray((folder / name).read_bytes())
        flipped[3] ^= 1
        (folder / name).write_bytes(flipped)
    (folder / "deep" / "file-2.bin").unlink()
    alone = storage.damage(folder)
    assert len(alone) == 4
    for parts in (2, 3, 20):
        shares = [storage.damage(folder, part=part, parts=parts) for part in range(parts)]
        assert sorted(problem for share in shares for problem in share) == sorted(alone)


def test_a_file_is_hashed_as_it_is_written(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        hashing = storage.HashingFile(file)
        for block in (b"abc", memoryview(b"defg" * 9000), bytearray(b"")):
            assert hashing.write(block) == len(block)
    content = b"abc" + b"defg" * 9000
    assert hashing.digest() == storage.Digest(len(content), hashlib.sha256(content).hexdigest())
    assert hashing.digest() == storage.digest_of(tmp_path / "x")


def test_the_seal_is_written_last_and_takes_digests_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("known", "read"):
        (tmp_path / "a" / name).write_bytes(name.encode())
    read: list[str] = []
    digest_of = storage.digest_of
    monkeypatch.setattr(storage, "digest_of", lambda path: (read.append(Path(path).name), digest_of(path))[1])
    own = storage.seal(tmp_path / "a", {"known": digest_of(tmp_path / "a" / "known")})
    assert read == ["read"]
    assert own == storage.seal_of(tmp_path / "a")
    written = sorted((tmp_path / "a").iterdir(), key=lambda path: os.stat(path).st_mtime_ns)
    assert [path.name for path in written[2:]] == [storage.MANIFEST, storage.SEAL]
    assert storage.damage(tmp_path / "a") == ()


def test_the_name_of_a_damaged_folder_tells(tmp_path: Path) -> None:
    with storage.claim(tmp_path) as attempt:
        for _ in range(2):  # the second takes the place of the first
            folder = make_folder(tmp_path / "step-000004", seed=1)
            aside = storage.set_aside(tmp_path, attempt, folder)
            assert (aside.name, folder.exists()) == ("step-000004.damaged", False)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_is_published_may_be_read_by_whom_the_umask_allows(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with storage.claim(tmp_path) as attempt:
            half = tmp_path / "student.tmp"
            (half / "deeper").mkdir(parents=True)
            save_file({"weight": np.zeros(3, dtype=np.float32)}, half / "model.safetensors")
            save_file({"weight": np.zeros(3, dtype=np.float32)}, half / "deeper" / "model.safetensors")
            storage.publish(tmp_path, attempt, half, tmp_path / "student")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "student").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
    assert storage.damage(tmp_path / "student") == ()

"""`mopd audit`: what of a run is whole, and what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from cli_kit import mopd, refused
from damage_kit import KINDS, harm

from mopd.distill import storage
from mopd.recipes.audit_command import audit
from mopd.recipes.resolve.damage import write_marker


def make_run(run: Path, *, stages: tuple[str, ...] = ()) -> Path:
    """A run's folder whose weights are some bytes."""
    for name in ("checkpoints/step-000001", "checkpoints/step-000002", "student", "initial"):
        for file in ("model.safetensors", "config.json"):
            path = run / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{path}".encode() * 50)
        storage.seal(run / name)
    (run / "recipe.yaml").write_text("name: test\n")
    write_marker(run, steps=2)
    for stage in stages:
        make_run(run / "stages" / stage)
    return run


def states(run: Path) -> dict[str, str]:
    return {row.name: row.state for row in audit(run)}


def test_a_whole_run_ends_with_status_0_and_a_damaged_one_with_2(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stages=("base",))
    parts = ["checkpoints/step-000001", "checkpoints/step-000002", "initial", "student"]
    assert states(run) == dict.fromkeys([*parts, *(f"stages/base/{part}" for part in parts)], "whole")
    result = mopd("audit", str(run))
    assert (result.exit_code, "nothing is damaged" in result.output) == (0, True)
    for i, kind in enumerate(KINDS):
        for part in (*parts, "stages/base/student"):
            whole = Path(shutil.copytree(run / part, tmp_path / "whole"))
            name = harm(run / part, run / "stages/base/initial", kind=kind, place=i)
            assert [(row.name, name in row.detail) for row in audit(run) if row.state == "damaged"] == [(part, True)]
            result = mopd("audit", str(run))
            assert result.exit_code == 2
            assert "1 of 8 damaged" in result.output
            shutil.rmtree(run / part)
            whole.rename(run / part)


def test_what_is_neither_whole_nor_damaged_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in (storage.MANIFEST, storage.SEAL):
        (run / "checkpoints" / "step-000001" / name).unlink()
    shutil.copytree(run / "student", run / "checkpoints" / "step-000003.damaged")
    shutil.copytree(run / "student", run / "checkpoints" / "step-000004.tmp-feed")
    (run / "adapters.json").write_text(json.dumps({str(tmp_path / "a"): {"adapter_model.safetensors": {}}}))
    assert states(run) == {
        "checkpoints/step-000001": "not verified",
        "checkpoints/step-000002": "whole",
        "checkpoints/step-000003.damaged": "set aside",
        "checkpoints/step-000004.tmp-feed": "half written",
        "initial": "whole",
        "student": "whole",
        "adapters of teachers": "damaged",
    }
    shutil.rmtree(run / "student")
    (run / "adapters.json").unlink()
    assert [row.name for row in audit(run) if row.state == "damaged"] == ["student"]


def test_a_study_is_its_runs_and_the_stages_that_they_share(tmp_path: Path) -> None:
    shared = make_run(tmp_path / "stages-0" / "base-feed")
    for name in ("slow-0", "fast-0"):
        make_run(tmp_path / name)
        (tmp_path / name / "stages").mkdir()
        (tmp_path / name / "stages" / "base").symlink_to(Path("../..") / "stages-0" / "base-feed")
    (tmp_path / "study.json").write_text(json.dumps({"format": 1, "name": "s", "runs": {"slow-0": {}, "fast-0": {}}}))
    assert len(audit(tmp_path)) == 12  # the shared one once
    assert "stages/base/student" in states(tmp_path / "slow-0")
    harm(shared / "student", tmp_path / "slow-0" / "student", kind="flipped", place=0)
    assert [row.name for row in audit(tmp_path) if row.state == "damaged"] == ["stages-0/base-feed/student"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "is no run's folder" in refused("audit", str(tmp_path))


def test_it_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = (
        "import sys\nfrom mopd.recipes.cli import app\napp(['audit', sys.argv[1]], standalone_mode=False)\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'numpy') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"

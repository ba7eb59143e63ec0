"""What a run may spend: FLOPs that its recipe says, or as many as another method of its study took on the same seed."""

from __future__ import annotations

import json
from pathlib import Path

from mopd.distill.errors import UserError
from mopd.distill.recipe import ComputeRecipe
from mopd.distill.storage import write_atomic
from mopd.recipes.compare.cost import run_cost, teachers_cost
from mopd.recipes.compare.runs import read_runs
from mopd.recipes.report.data import run_ledger
from mopd.recipes.report.records import read_json, recorded_recipe
from mopd.recipes.resolve.run_folder import BUDGET


def note_budget(reference: Path, folder: Path, times: float) -> None:
    """Write into ``folder`` what its run may spend on training, unless that is known: ``times`` what ``reference`` took
    with the making of its teachers, less the making of its own.

    Args:
        reference: the folder of a finished run.
        folder: that of the run, whose stages are made.

    Raises:
        UserError: what one of them spent is not known, or nothing is left for the run.
    """
    if (folder / BUDGET).is_file():
        return
    (run,) = read_runs([reference])
    whole = run_cost(run).with_teachers
    own = teachers_cost(recorded_recipe(folder), run_ledger(folder).spent)
    if whole is None or own is None:
        unknown = reference if whole is None else folder
        raise UserError(
            f"`run.compute.equal_to`: what the teachers of {unknown.name} cost is not known, since they were made "
            "elsewhere; write `run: {compute: {flops: ...}}`"
        )
    left = times * whole.flops - own.flops
    if left <= 0:
        raise UserError(
            f"`run.compute`: {times:g} times {reference.name} with its teachers is {times * whole.flops:.3g} FLOP, and "
            f"the teachers of {folder.name} alone took {own.flops:.3g}; raise `times`, or take `run.compute` away"
        )
    noted = {"flops": left, "equal_to": reference.name, "times": times}
    write_atomic(folder / BUDGET, json.dumps(noted, indent=2) + "\n")


def read_budget(compute: ComputeRecipe | None, folder: Path) -> float | None:
    """The FLOPs that a run may spend on training; None: any.

    Raises:
        UserError: another run of its study sets them, and has not yet.
    """
    if compute is None:
        return None
    if compute.flops is not None:
        return compute.flops
    if (noted := read_json(folder / BUDGET)) and "flops" in noted:
        return float(noted["flops"])
    raise UserError(
        f"`run.compute.equal_to` is {compute.equal_to}, a method of a study, and {folder / BUDGET} is not there, in "
        "which a study notes what that took; run the study, or write `run: {compute: {flops: ...}}`"
    )

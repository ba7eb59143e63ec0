"""A comparison as a report of W&B: its text and tables, and the runs' scores over compute as W&B draws them."""

from __future__ import annotations

from pathlib import Path

from mopd.distill.errors import UserError
from mopd.distill.tracking.wandb_workspace import save_report
from mopd.recipes.compare.comparison import Comparison
from mopd.recipes.compare.markdown import markdown
from mopd.recipes.compare.wording import headline
from mopd.recipes.report.records import recorded_recipe


def save_wandb_report(comparison: Comparison) -> str:
    """Save it in the W&B project of the first run; returns its address.

    Raises:
        UserError: the runs are of several teams of W&B, its package is missing, nobody is logged in, or the server
            can't be reached or refuses.
    """
    groups: dict[str, list[str]] = {}
    owners: dict[str | None, str] = {}
    for run in comparison.runs:
        recipe = recorded_recipe(Path(run.folder))
        track = recipe.tree["track"]["wandb"]
        groups.setdefault(track.get("project") or "mopd", []).append(recipe.name)
        owners[track.get("entity")] = run.name
    if len(owners) > 1:
        named = ", ".join(f"{name} of {owner or 'who is logged in'}" for owner, name in owners.items())
        raise UserError(f"--wandb-report: runs are of several W&B entities ({named}); a report is of one")
    runs = {project: list(dict.fromkeys(names)) for project, names in groups.items()}
    title = f"mopd: {headline(comparison)[1]}"
    return save_report(title, markdown(comparison), runs, comparison.domains, entity=next(iter(owners)))

"""The table of docs/quickstart-seeds.md, of finished runs of the quickstart; a run that is listed already is replaced.

`python -m tests.benchmarks.quickstart_seeds RUN ...` adds them to docs/data/quickstart-seeds.json and prints both
tables, the README's and the page's, in the order in which the seeds were drawn.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopd.distill.tracking.jsonl import read_jsonl
from mopd.recipes.report.records import read_json, recorded_recipe

DATA = Path(__file__).parents[2] / "docs" / "data" / "quickstart-seeds.json"
DOMAINS = ("math", "code", "reasoning")


def percent(scores: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [round(100 * scores[domain]["score"], 1) for domain in DOMAINS]


def row_of(run: Path) -> dict[str, Any]:
    """What a run came to: scores in %, recoveries as parts of 1, and what the mixture did at every twentieth step."""
    result = read_json(run / "seesaw.json")
    models, metrics = result["models"], result["metrics"]
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if row["kind"] == "train"]
    by_teacher = [percent(models[f"teachers/{domain}"]) for domain in DOMAINS]
    return {
        "seed": recorded_recipe(run).seed,
        "base": percent(models["base"]),
        "specialists": [scores[own] for own, scores in enumerate(by_teacher)],
        "elsewhere": min(score for own, scores in enumerate(by_teacher) for i, score in enumerate(scores) if i != own),
        "student": percent(models["student"]),
        "worst": round(metrics["worst_recovery"], 3),
        "ci": [round(end, 3) for end in result["metrics_ci"]["worst_recovery"]],
        "mean": round(metrics["mean_recovery"], 3),
        "recovery": [round(metrics["recovery"][domain], 3) for domain in DOMAINS],
        "steps": result["curve"][-1]["step"],
        "stages": [read_json(run / "stages" / domain / "finished.json")["steps"] for domain in DOMAINS],
        "prompts": {domain: [row[f"prompts/{domain}"] for row in steps if row["step"] % 20 == 1] for domain in DOMAINS},
        "mean_prompts": [round(statistics.mean(row[f"prompts/{domain}"] for row in steps)) for domain in DOMAINS],
        "validation": [
            [point["step"], *(round(100 * point["scores"][domain], 1) for domain in DOMAINS)]
            for point in result["curve"]
        ],
    }


def table_rows(row: Mapping[str, Any]) -> tuple[str, str]:
    """A seed's row of the README's table and of the page's."""
    listed = {key: ", ".join(f"{score:.1f}" for score in row[key]) for key in ("base", "specialists", "student")}
    low, high = row["ci"]
    short = (
        f"| {row['seed']} | {listed['base']} | {listed['specialists']} | {listed['student']} "
        f"| {row['worst']:.2f} ({low:.2f} to {high:.2f}) |"
    )
    counts = (", ".join(map(str, row[key])) for key in ("stages", "mean_prompts"))
    return short, f"{short} {row['steps']} | {' | '.join(counts)} |"


def main(runs: list[str]) -> None:
    """Add the runs and print the tables."""
    kept = read_json(DATA)
    by_seed = {row["seed"]: row for row in [*kept["runs"], *map(row_of, map(Path, runs))]}
    kept["runs"] = [by_seed[seed] for seed in kept["seeds"] if seed in by_seed]
    DATA.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    for table in zip(*map(table_rows, kept["runs"]), strict=True):
        print("\n".join(table), end="\n\n")
    worst = [row["worst"] for row in kept["runs"]]
    pairs = [pair for row in kept["runs"] for pair in zip(row["base"], row["specialists"], strict=True)]
    print(f"W {min(worst):.3f} to {max(worst):.3f}, mean {statistics.mean(worst):.3f}")
    print(f"the least that a specialist gains: {min(after - before for before, after in pairs):.1f} points")


if __name__ == "__main__":
    main(sys.argv[1:])

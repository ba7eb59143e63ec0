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

import yaml

DATA = Path(__file__).parents[2] / "docs" / "data" / "quickstart-seeds.json"
DOMAINS = ("math", "code", "reasoning")


def percent(scores: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [round(100 * scores[domain]["score"], 1) for domain in DOMAINS]


def row_of(run: Path) -> dict[str, Any]:
    """What a run came to: scores in %, recoveries as parts of 1, and what the mixture did at every twentieth step."""
    result = json.loads((run / "seesaw.json").read_text())
    models, metrics = result["models"], result["metrics"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    return {
        "seed": yaml.safe_load((run / "recipe.yaml").read_text())["seed"],
        "base": percent(models["base"]),
        "specialists": [percent(models[f"teachers/{domain}"])[DOMAINS.index(domain)] for domain in DOMAINS],
        "elsewhere": min(
            round(100 * models[f"teachers/{teacher}"][domain]["score"], 1)
            for teacher in DOMAINS
            for domain in DOMAINS
            if teacher != domain
        ),
        "student": percent(models["student"]),
        "worst": round(metrics["worst_recovery"], 3),
        "ci": [round(end, 3) for end in result["metrics_ci"]["worst_recovery"]],
        "mean": round(metrics["mean_recovery"], 3),
        "recovery": [round(metrics["recovery"][domain], 3) for domain in DOMAINS],
        "steps": result["curve"][-1]["step"],
        "stages": [json.loads((run / "stages" / domain / "finished.json").read_text())["steps"] for domain in DOMAINS],
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
    kept = json.loads(DATA.read_text())
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

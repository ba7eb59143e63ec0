"""`make coverage`: how often the intervals hold the truth and the words are right, by simulation.

Prints the tables of docs/statistics.md, and writes them there with ``--write``. All is keyed: it prints the same again.

A few minutes on two cores. A small version of it is tests/unit/distill/metrics/test_coverage.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import coverage_kit as kit  # noqa: E402
from coverage_kit import KINDS, Cell, Tallies, Tally  # noqa: E402

PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- written by make coverage -->", "<!-- end of what make coverage wrote -->"

SEEDS, QUESTIONS, HEADROOMS = (1, 2, 3, 5, 8), (200, 1000, 5000), (0.1, 0.3, 0.6, 0.0)

EXTREMES = ("worst_recovery", "worst_by_seed", "imbalance", "pareto_gap")
WITHOUT_ORACLE = ("recovery", "mean_recovery", "pooled_recovery", "points_at_once")
WORDS = ("gone, and it is not", "remains, and it is gone", "at least, and it is less")

Key = tuple[str, Cell]


def grid(draws: int) -> list[Key]:
    """Every simulation with its cell; large cells have fewer draws."""
    cells: list[Key] = []
    for kind, seeds, questions, headroom in itertools.product(KINDS, SEEDS, QUESTIONS, HEADROOMS):
        if (questions, headroom) == (200, 0.1) and seeds > 2:
            continue  # a teacher that is ten points better is seldom clear to every seed
        fewer = max(1, seeds * questions // 6000)
        cells.append(("intervals", Cell(kind, questions, seeds, headroom, max(40, draws // fewer))))
    for kind, seeds, questions, headroom in itertools.product(KINDS, (1, 3, 8), (200, 1000), (0.1, 0.3)):
        cells.append(("regression", Cell(kind, questions, seeds, headroom, draws, loses=True)))
    for seeds, questions in itertools.product((1, 3), (30, 200, 1000)):
        cells.append(("no_regression", Cell("balanced", questions, seeds, 0.3, 2 * draws)))
    for kind, questions in itertools.product(KINDS, (200, 1000)):
        cells.append(("forgetting", Cell(kind, questions, 1, 0.3, 2 * draws)))
    for kind, seeds, questions in itertools.product(("balanced", "one low"), (1, 3), (300, 1000)):
        cells.append(("rows", Cell(kind, questions, seeds, 0.4, draws)))
    for questions, headroom in ((200, 0.3), (200, 0.6), (1000, 0.1), (1000, 0.3), (1000, 0.6), (1000, 0.0)):
        cells.append(("power", Cell("balanced", questions, 1, headroom, 2 * draws)))
    return cells


def run(key: Key) -> tuple[Key, Tallies]:
    name, cell = key
    simulation: Callable[[Cell], Tallies] = getattr(kit, name)
    return key, simulation(cell)


def together(results: Iterable[tuple[Key, Tallies]], by: Callable[[Cell], object]) -> dict[tuple[object, str], Tally]:
    """Tallies of one name, summed over the cells that ``by`` does not tell apart."""
    sums: dict[tuple[object, str], Tally] = defaultdict(Tally)
    for (_, cell), tallies in results:
        for name, tally in tallies.items():
            sums[by(cell), name] = sums[by(cell), name] + tally
    return sums


def lowest(results: Iterable[tuple[Key, Tallies]], name: str) -> Tally:
    """Of the cells with enough draws to tell, the one that covers least."""
    return min(of_cells(results, name), key=lambda tally: tally.part)


def of_cells(results: Iterable[tuple[Key, Tallies]], name: str) -> list[Tally]:
    """Tallies of a name, of cells with at least half as many draws as the largest."""
    found = [tallies[name] for _, tallies in results if name in tallies]
    return [tally for tally in found if 2 * tally.draws >= max(t.draws for t in found)]


def table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _covered(tally: Tally) -> str:
    return "–" if not tally.draws else f"{tally.part:.3f}".removeprefix("0")


def _both(tally: Tally) -> str:
    return "–" if not tally.draws else f"{_covered(tally)} ({tally.ratio:.2f})"


def _points(total: float, draws: int) -> str:
    return f"{100 * total / draws:+.1f}".replace("-", "−")


def extremes_by_seeds(results: list[tuple[Key, Tallies]]) -> str:
    sums = together(results, lambda cell: (cell.kind, cell.seeds))
    lines = []
    for name, kind in itertools.product((*EXTREMES, "max_regression"), KINDS):
        of_seeds = [sums[(kind, seeds), name] for seeds in SEEDS]
        lines.append([f"`{name}`, {kind}", *map(_both, of_seeds)])
    return table(["coverage (width beside the oracle’s)", *(f"{n} seed{'s' * (n > 1)}" for n in SEEDS)], lines)


def worst_by_size(results: list[tuple[Key, Tallies]]) -> str:
    alone = [(key, tallies) for key, tallies in results if key[1].seeds == 1]
    sums = together(alone, lambda cell: (cell.kind, cell.headroom, cell.questions))
    lines = []
    for headroom, kind in itertools.product(HEADROOMS, KINDS):
        title = f"{100 * headroom:.0f} points" if headroom else "10 to 60 points, each its own"
        cells = [_both(sums[(kind, headroom, n), "worst_recovery"]) for n in QUESTIONS]
        lines.append([f"{title}, {kind}", *cells])
    return table(["`worst_recovery` of one run, by headroom", *(f"{n} questions" for n in QUESTIONS)], lines)


def estimates(results: list[tuple[Key, Tallies]]) -> str:
    sums = together(results, lambda cell: (cell.kind, cell.seeds > 1))
    lines = []
    for name, kind in itertools.product((*EXTREMES, "max_regression", "forgetting"), KINDS):
        cells: list[str] = []
        for several in (False, True):
            tally = sums[(kind, several), name]
            known = tally.draws > 0
            cells += [_points(tally.plain, tally.draws), _points(tally.bias, tally.draws)] if known else ["–", "–"]
        lines.append([f"`{name}`, {kind}", *cells])
    head = ["mean error, points", "one run: plain", "estimate", "several seeds: plain", "estimate"]
    return table(head, lines)


def others(results: list[tuple[Key, Tallies]]) -> str:
    sums = together(results, lambda cell: None)
    lines = []
    for name in (
        *EXTREMES,
        "max_regression",
        "forgetting",
        *WITHOUT_ORACLE,
        "differences in points",
        "difference of worst recoveries",
    ):
        tally, least = sums[None, name], lowest(results, name)
        slack = 3 * math.sqrt(0.05 * 0.95 / least.draws)
        ratio = f"{tally.ratio:.2f}" if tally.oracle else "–"
        title = f"`{name}`" if "_" in name or " " not in name else name
        lines.append(
            [title, _covered(tally), f"{tally.draws:,}", f"{_covered(least)} (±{slack:.3f})".replace("±0", "±"), ratio]
        )
    return table(["all cells together", "coverage", "draws", "least of a cell", "width beside the oracle’s"], lines)


def words(results: list[tuple[Key, Tallies]]) -> str:
    sums = together(results, lambda cell: None)
    lines = []
    wrong = (
        *WORDS,
        "below its base, and it is not",
        "ahead of all, and it is not",
        "the best of several keeps at least, and it is less",
    )
    for name in wrong:
        most = max(of_cells(results, name), key=lambda tally: tally.part)
        tally = sums[None, name]
        lines.append(
            [
                f"“{name.split(',')[0]}” is said{',' + name.split(',')[1]}",
                f"{100 * tally.part:.1f}%",
                f"{100 * most.part:.1f}%",
            ]
        )
    by_headroom = together([r for r in results if r[0][0] == "power"], lambda cell: (cell.questions, cell.headroom))
    for (size, name), tally in by_headroom.items():
        if tally.draws:
            questions, headroom = size  # type: ignore[misc]
            title = f"{100 * headroom:.0f} points" if headroom else "10 to 60 points"
            lines.append(
                [
                    f"{name}, asked from {questions} questions, headroom {title}",
                    f"{100 * tally.part:.0f}%",
                    f"of {tally.draws}",
                ]
            )
    return table(["sentence", "of all draws", "most in a cell"], lines)


def page(results: list[tuple[Key, Tallies]]) -> str:
    parts = [others(results), extremes_by_seeds(results), worst_by_size(results), estimates(results), words(results)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300, help="of each cell, at most")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/statistics.md")
    arguments = parser.parse_args()
    start, cells = time.monotonic(), grid(arguments.draws)
    cells.sort(key=lambda key: -key[1].questions * key[1].seeds)
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        results = list(pool.map(run, cells))
    results.sort(key=lambda result: (result[0][0], str(result[0][1])))
    text = page(results)
    print(text)
    print(f"\n{len(cells)} cells in {time.monotonic() - start:.0f} s")
    if arguments.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()

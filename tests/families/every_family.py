"""`make families`: every causal family of transformers, made tiny from its configuration, and what becomes of it.

Prints the table of docs/families.md, and writes it there with ``--write``. Ten minutes on one quiet core; a sample of
it is tests/unit/distill/models/test_family_table.py, which `make test` runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from families_kit import BEGIN, END, Outcome, causal_families, outcome, page  # noqa: E402

PAGE = ROOT / "docs" / "families.md"


def outcomes(families: list[str], processes: int) -> Mapping[str, Outcome]:
    """What becomes of each family, in their order."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, Outcome] = {}
    with context.Pool(processes, maxtasksperchild=20) as pool:
        for family, result in zip(families, pool.imap(outcome, families), strict=True):
            print(f"{family:32s} {result.kind:9s} {result.detail}", file=sys.stderr, flush=True)
            found[family] = result
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="of these alone")
    parser.add_argument("--write", action="store_true", help="write the table into docs/families.md")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    found = outcomes(arguments.families or causal_families(), arguments.processes)
    text = page(found)
    print(text)
    if arguments.write and not arguments.families:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n\n" + text + "\n\n" + END + rest.partition(END)[2])
    if wrong := [family for family, result in found.items() if result.kind == "wrong"]:
        raise SystemExit(f"neither right nor refused: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

"""Programs and expressions that the sandbox verifies in a second, alone and with hostile neighbours.

Of programs one in a hundred loops without an end and one takes all memory it gets; of expressions one in five hundred
does either. Programs are verified under the whitelist, and in bubblewrap where it is. Ratios are of one run; what a
second holds depends on the machine's other work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from mopd.rollouts.sandbox.bubblewrap.choice import bubblewrap_problem
from mopd.rollouts.sandbox.run import evaluate_expressions, judge_programs, run_tests_many

PROGRAM = """
from collections import Counter
def words(text):
    counts = Counter(word.lower().strip('.,') for word in text.split())
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
"""
TESTS = """
assert words('') == []
assert words('a b a') == [('a', 2), ('b', 1)]
assert all(words(' '.join('xyz'[i % 3] for i in range(n)))[0][1] == (n + 2) // 3 for n in range(1, 20))
"""
LOOP = ("def words(text):\n    while True: pass", TESTS)
BOMB = ("a = [0]\nwhile True: a = a + a", TESTS)
LISTS = [[3, 1, 2, 9, -4, 7], [], [5, 5, 5], list(range(12))]
EXPRESSIONS = ["sorted(x)", "sum(v * v for v in x if v % 2 == 1)", "[a + b for a, b in zip(x, x[1:])]", "len(set(x))"]
HOSTILE_EXPRESSIONS = ["sum(v for v in range(10**15))", "[0] * 10**10"]


def _per_second(run: Callable[[Sequence[Any]], object], jobs: Sequence[Any]) -> float:
    start = time.perf_counter()
    run(jobs)
    return len(jobs) / (time.perf_counter() - start)


def measure() -> dict[str, float]:
    """Jobs per second of each kind, and what is left of it beside hostile ones."""
    programs = [(PROGRAM, TESTS)] * 400
    expressions = [(EXPRESSIONS[n % len(EXPRESSIONS)], LISTS) for n in range(4000)]
    run_tests_many(programs[:2])  # servers are up

    def boxed(jobs: Sequence[tuple[str, str]]) -> object:
        return judge_programs(jobs, sandbox="bubblewrap")

    evaluate_expressions(expressions[:2])
    beside = list(programs)
    beside[100::200], beside[50::200] = [LOOP] * 2, [BOMB] * 2
    beside += programs
    beside[500::200], beside[450::200] = [LOOP] * 2, [BOMB] * 2
    crowded = [
        (HOSTILE_EXPRESSIONS[n // 500 % 2], LISTS) if n % 500 == 250 else job for n, job in enumerate(expressions)
    ]
    figures = {
        "programs": _per_second(run_tests_many, programs),
        "programs_beside_hostile_ones": _per_second(run_tests_many, beside),
        "expressions": _per_second(evaluate_expressions, expressions),
        "expressions_beside_hostile_ones": _per_second(evaluate_expressions, crowded),
    }
    kinds = ["programs", "expressions"]
    if bubblewrap_problem() is None:
        boxed(programs[:2])
        kinds.append("programs_in_bubblewrap")
        figures["programs_in_bubblewrap"] = _per_second(boxed, programs)
        figures["programs_in_bubblewrap_beside_hostile_ones"] = _per_second(boxed, beside)
    return figures | {
        f"{kind}_left_beside_hostile_ones": figures[f"{kind}_beside_hostile_ones"] / figures[kind] for kind in kinds
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

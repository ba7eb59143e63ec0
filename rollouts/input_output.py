"""Programs that are told by inputs and outputs: what is read and printed, or arguments and value of a function.

A column's cases, as APPS, TACO, CodeContests and LiveCodeBench write them, become one canonical text, and that becomes
tests which run in the sandbox (:mod:`rollouts.sandbox`). Pure functions.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from typing import Any

from mopd.rollouts.sandbox.rules import RUN

PRELUDE = """from typing import *
from collections import *
from functools import *
from heapq import *
from itertools import *
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import bisect, bisect_left, bisect_right
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, log, log2, sqrt
"""
"""What sites where functions are asked for import before an answer, whose starter code names `List` and the like."""

_PRINTED = f"""
from decimal import Decimal

def same_token(written, wanted):
    if written == wanted:
        return True
    try:
        a, b = Decimal(written), Decimal(wanted)
        return a == b or ("." in wanted and abs(a - b) <= Decimal("1e-6") * max(1, abs(b)))
    except ArithmeticError:
        return False

def same_text(written, wanted):
    a = [line.split() for line in written.rstrip().split("\\n")]
    b = [line.split() for line in wanted.rstrip().split("\\n")]
    if len(a) != len(b) or [len(line) for line in a] != [len(line) for line in b]:
        return False
    return all(same_token(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))

def check(given, wanted):
    assert same_text({RUN}(given), wanted)

"""
_RETURNED = """
def same(value, wanted):
    if isinstance(wanted, list):
        if not isinstance(value, (list, tuple)) or len(value) != len(wanted):
            return False
        return all(same(a, b) for a, b in zip(value, wanted, strict=True))
    if type(wanted) is float and type(value) in (int, float):
        return value == wanted or abs(value - wanted) <= 1e-6 * max(1, abs(wanted))
    return type(value) is type(wanted) and value == wanted

def check(arguments, wanted):
    value = answer(*arguments)
    assert same(value, wanted) or (type(wanted) is list and len(wanted) == 1 and same(value, wanted[0]))

try:
    answer = Solution().{name}
except NameError:
    answer = {name}

"""


def cases_text(cell: Any, function: str | None) -> str:
    """The cases of a row as one text: JSON with `inputs`, `outputs`, and `function` where one is asked for.

    Args:
        cell: a mapping of `inputs`, `outputs` and perhaps `fn_name`; or a list of mappings of `input` and `output`,
            where `testtype: functional` says that a line of the input is an argument; or JSON text of either.
        function: the name of the function that is asked for; None: the cell says so, or it is a whole program.

    Raises:
        ValueError: it is neither; the message is the end of a sentence that begins with the column.
    """
    value = _parsed(cell)
    if isinstance(value, Mapping) and isinstance(value.get("inputs"), list) and isinstance(value.get("outputs"), list):
        inputs, outputs = value["inputs"], value["outputs"]
        function = function or value.get("fn_name") or None
        if function is None:
            inputs, outputs = [_as_text(each) for each in inputs], [_as_text(each) for each in outputs]
    elif isinstance(value, list) and value and all(_is_case(case) for case in value):
        functional = any(case.get("testtype") == "functional" for case in value)
        if functional and function is None:
            raise ValueError("has cases of a function, and no name of it; name its column as `function`")
        function = function if functional or "testtype" not in value[0] else None
        inputs, outputs = [case["input"] for case in value], [case["output"] for case in value]
        if function is not None:
            inputs = [[_parsed(line) for line in str(text).split("\n")] for text in inputs]
            outputs = [_parsed(text) for text in outputs]
    else:
        raise ValueError("holds no cases: {inputs: [...], outputs: [...]}, or a list of {input, output}")
    content = {"inputs": inputs, "outputs": outputs} | ({"function": function} if function else {})
    return json.dumps(content, ensure_ascii=False)


def _is_case(case: Any) -> bool:
    return isinstance(case, Mapping) and "input" in case and "output" in case


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _as_text(value: Any) -> str:
    """A text, or the lines of one."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)


def cases_problem(cases: str) -> str | None:
    """Why a text is none of :func:`cases_text`, as the end of a sentence; None if it is one."""
    value = _parsed(cases)
    if not isinstance(value, dict) or not {"inputs", "outputs"} <= value.keys():
        return "holds no cases"
    inputs, outputs, function = value["inputs"], value["outputs"], value.get("function")
    if not inputs:
        return "has no case: every program would pass"
    if len(inputs) != len(outputs):
        return f"has {len(inputs)} inputs and {len(outputs)} outputs"
    if function is None:
        return None
    if not str(function).isidentifier() or keyword.iskeyword(function) or str(function).startswith("__"):
        return f"asks for the function {function!r}, which is no name"
    return None if all(isinstance(each, list) for each in inputs) else "has arguments that are no list"


def is_function(cases: str) -> bool:
    """Whether a function is asked for, and not a whole program."""
    return "function" in json.loads(cases)


def tests_of(cases: str) -> str:
    """The tests that a program has to pass.

    What is printed is compared line by line and word by word, without blanks at the ends: as text, as numbers exactly,
    and within 1e-6 where the right one has a point. Values are compared by type, tuples as lists, numbers with a point
    within 1e-6; a value that stands alone in a list may come without it, as APPS writes some.
    """
    value = json.loads(cases)
    head = _PRINTED if "function" not in value else _RETURNED.replace("{name}", value["function"])
    return head + "".join(
        f"check({given!r}, {wanted!r})\n" for given, wanted in zip(value["inputs"], value["outputs"], strict=True)
    )


def whole_program(program: str, cases: str) -> str:
    """A program with the imports that its site makes before it, where a function is asked for."""
    return program if not is_function(cases) or "__future__" in program else f"{PRELUDE}\n{program}"

"""Mathematical equivalence inside the sandboxed process: lists by their parts, values exactly, the rest by math-verify.

Reading a formula means evaluating it: sympy's parser runs Python's `eval` on what the model wrote, and `9^9^9^9` never
ends. So it happens behind the same lock and limits as generated code, whose processor time replaces the library's own
timeouts (signals, which fail off the main thread and cannot interrupt one huge multiplication).

math-verify rounds to six digits, compares numbers with small ones chopped to zero, drops units and bases, and takes a
set for a tuple; so it reads formulas here, and compares those alone that are relations or sets.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef

from mopd.rollouts.choices import chosen_letter
from mopd.rollouts.latex import (
    Formula,
    FormulaParts,
    equation_sides,
    final_formula,
    gold_formula,
    in_words,
    parts,
    read,
    spelling,
    vector_items,
)
from mopd.rollouts.quantities import answer_values, values

_LATEX = LatexExtractionConfig(  # its units would take the c off a + b + c; ours are off already
    normalization_config=NormalizationConfig(malformed_operators=True, nits=True, units=False, boxed="none")
)
_DIGITS, _CLOSE = 60, sympy.Float("1e-45", 60)
"""Digits that irrational numbers are computed to, and the relative difference below which they are equal."""
_POINTS = [sympy.Rational(a, b) for a, b in ((3, 7), (-5, 3), (17, 11), (29, 5), (-1, 13), (101, 3), (7, 19), (-43, 9))]
"""Values of variables at which expressions are compared."""
_LEAST_POINTS = 3
_SAYS = re.compile(r"\b(?:is|are|equals|get|gives)\s|[:=]\s")
_LONGEST_MATCH = 40  # items of a list without order
_DEEPEST = 4  # lists in lists

# sympy imports parts of itself when they are first needed, and a locked process can open no file; so its rooms that do
# are imported before the lock, and each kind of answer is compared once. (answer, text)
_LAZY_ROOMS = ("calculus", "concrete", "functions", "integrals", "polys.domains", "series", "sets")
_WARM_UP = (
    ("1/2", r"so \boxed{\frac{2}{4}} of it"),
    (r"\sqrt{8}", r"$2\sqrt{2}$"),
    ("x^2+2x+1", "$(x+1)^2$"),
    ("x^2+2x+1", "$(x-1)^2$"),
    (r"\{1,2\}", r"$\{2,1\}$"),
    ("(1,2]", r"$1<x\le 2$"),
    (r"(-\infty,1)\cup(2,\infty)", r"$(-\infty,1)\cup(2,\infty)$"),
    ("(1,2)", "$(1,2,3)$"),
    ("x=3", "$3=x$"),
    ("x>3", "$x-3>0$"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"$\begin{pmatrix}1&2\\3&5\end{pmatrix}$"),
    (r"\sin^2 x+\cos^2 x", "$1$"),
    (r"e^{i\pi}", "$-1$"),
    (r"\log_2 8", r"$3$"),
    (r"\int_0^1 x dx", r"$\frac12$"),
    (r"\sum_{n=1}^{3} n", "$6$"),
    (r"\lim_{x\to 0} x", "$0$"),
    (r"\binom{4}{2}", "$6$"),
    (r"5\%", "$0.05$"),
    ("3!", "$6$"),
    (r"|x-1|", "$|1-x|$"),
    (r"\frac{d}{dx} x^2", "$2x$"),
    ("2+3i", "$3i+2$"),
    (r"\text{east}", r"\text{west}"),
    (r"90^\circ", "$90$"),
    ("1.5", "about 1.50"),
    (r"\pi/4", r"$0.785398$"),
    (r"\tan 1", r"$\frac{\sin 1}{\cos 1}$"),
    (r"\sqrt{2}+\pi", r"$\pi+\sqrt[3]{2}$"),
    (r"\sqrt{x^2}", "$|x|$"),
    ("(-\\infty,2)", "$x<2$"),
    ("x^2=4", "$x=2$"),
    ("n!", "$(n+1)!$"),
    (r"\lfloor x\rfloor", r"$\lceil x\rceil$"),
    ("f(x)=x", "$f(x)=2x$"),
    (r"\log x^2", r"$2\log x$"),
    (r"0", r"$\sin^2 1+\cos^2 1-1$"),
    (r"\text{words}", "words and $1$"),
)


def prepare() -> None:
    """Import all that comparing needs."""
    for room in _LAZY_ROOMS:
        package = importlib.import_module(f"sympy.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("tests") and ".tests." not in module.name and "benchmarks" not in module.name:
                importlib.import_module(module.name)
    for answer, text in _WARM_UP:
        equal(answer, text)
        readable(text)


def equal(answer: str, text: str) -> bool:
    """Whether a text answers with the same mathematics as ``answer``.

    What the text answers with: :func:`rollouts.latex.final_formula`; where nothing marks a formula, the number that the
    text names, or its last line.
    """
    gold = gold_formula(answer)
    formula = final_formula(text)
    if formula is not None and _same(gold, formula):
        return True
    if formula is not None and ("$" in text or "\\" in text):
        return False
    wanted = values(gold)  # prose without a formula in it
    if wanted is not None:
        return wanted == answer_values(text, len(wanted))
    lines = text.strip().splitlines()
    if formula is not None or not lines:
        return False
    ends = (lines[-1], _SAYS.split(lines[-1])[-1])
    return any(_same(gold, end) for end in ends) or _same_as_prose(gold, lines[-1])


def readable(answer: str) -> bool:
    """Whether a gold answer can be compared as mathematics, or is words; another is equal to its own text alone."""
    return _readable(read(gold_formula(answer)), 0)


def _readable(gold: Formula, depth: int) -> bool:
    if in_words(gold.text) or _fraction(gold.text) is not None or gold.base is not None:
        return True
    items = parts(gold.text)
    if items is not None and depth < _DEEPEST:
        return all(_readable(read(item), depth + 1) for item in items.items)
    return bool(gold.text) and _parsed(gold.text) is not None


def _same(gold: str, got: str, depth: int = 0) -> bool:
    a, b = read(gold), read(got)
    if not a.text or not b.text or _differ(a.unit, b.unit) or _differ(a.base, b.base):
        return False
    if _squeezed(a.text) == _squeezed(b.text):
        return True
    if in_words(a.text) and re.fullmatch("[A-Ja-j]", spelling(a.text)):
        return chosen_letter(rf"\boxed{{{got}}}") == spelling(a.text).upper()
    if in_words(a.text) or in_words(b.text):
        return spelling(a.text) == spelling(b.text)
    if (a.unit == "degree") != (b.unit == "degree") and r"\pi" in (b.text if a.unit == "degree" else a.text):
        return _same_value(_in_radians(a), _in_radians(b))
    if a.base is not None or b.base is not None or depth > _DEEPEST:
        return depth <= _DEEPEST and (a.base is None) != (b.base is None) and _same_named(a.text, b.text, depth)
    left, right = parts(a.text), parts(b.text)
    if left is None and right is not None and right.kind == "()" and (entries := vector_items(a.text)):
        left = FormulaParts("()", entries)
    if right is None and left is not None and left.kind == "()" and (entries := vector_items(b.text)):
        right = FormulaParts("()", entries)
    if left is not None and right is not None and not (_is_interval(left) and right.kind == "union"):
        return _same_parts(left, right, depth + 1)
    if any(items is not None and items.kind in ("list", ":") for items in (left, right)):
        return _same_named(a.text, b.text, depth)
    return _same_value(a, b) or _same_named(a.text, b.text, depth)


def _in_radians(angle: Formula) -> Formula:
    return Formula(rf"({angle.text}) \cdot \pi/180") if angle.unit == "degree" else angle


def _differ(gold: object, got: object) -> bool:
    return gold is not None and got is not None and gold != got


def _same_named(gold: str, got: str, depth: int) -> bool:
    """Whether they are the same where one of them says what it is the value of, as ``x = 5``."""
    left, right = equation_sides(gold), equation_sides(got)
    if len(left) + len(right) != 3 or not (_is_name(left[0]) if len(left) == 2 else _is_name(right[0])):
        return False
    return _same(left[-1], right[-1], depth + 1)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _is_interval(items: FormulaParts) -> bool:
    return len(items.items) == 2 and items.kind in ("()", "[]", "(]", "[)")


def _same_parts(gold: FormulaParts, got: FormulaParts, depth: int) -> bool:
    """Sets and bare lists have no order; tuples, intervals and what is compared with them have, and their brackets."""
    if len(gold.items) != len(got.items):
        return False
    if (gold.kind == "union") != (got.kind == "union") and not _are_relations(got if gold.kind == "union" else gold):
        return False
    if gold.kind in ("list", "{}", "union") and got.kind in ("list", "{}", "union"):
        return _same_items(gold.items, got.items, depth)
    if "{}" in (gold.kind, got.kind) or (gold.kind != got.kind and "list" not in (gold.kind, got.kind)):
        return False
    return all(_same(a, b, depth) for a, b in zip(gold.items, got.items, strict=True))


def _are_relations(items: FormulaParts) -> bool:
    """Whether a list is one of inequalities, as ``x < 1 or x > 2``, which is a union of intervals."""
    return items.kind == "list" and all(re.search(r"[<>]|\\[lg]eq?(?![a-z])", item) for item in items.items)


def _same_items(gold: Sequence[str], got: Sequence[str], depth: int) -> bool:
    rest = list(got)
    for a in gold[:_LONGEST_MATCH]:
        match = next((place for place, b in enumerate(rest) if _same(a, b, depth)), None)
        if match is None:
            return False
        del rest[match]
    return len(gold) <= _LONGEST_MATCH


def _same_value(gold: Formula, got: Formula) -> bool:
    """Whether two formulas that are no lists have one value; ``x = 5`` is 5, 50% is 50 or 1/2."""
    percent = gold.percent or got.percent
    left, right = equation_sides(gold.text), equation_sides(got.text)
    if len(left) > 1 and len(right) > 1:
        if _squeezed(left[0]) == _squeezed(right[0]) and _is_name(left[0]):
            return _same_number(left[-1], right[-1], percent=percent)
        if any(map(_has_letters, (gold.text, got.text))):
            return _same_relation(gold.text, got.text)
        return all(any(_same_number(a, b, percent=percent) for a in left) for b in right)
    if len(left) > 1:
        if _is_name(left[0]):
            left = left[-1:]  # not per token
        elif _has_letters(gold.text):
            return False
    return any(_same_number(side, right[-1], percent=percent) for side in left)


def _is_name(side: str) -> bool:
    """Whether a side of an equation names the value of the other: ``x``, ``x_1``, ``f(x)``, ``(x, y)``, nothing."""
    squeezed = _squeezed(side)
    if re.fullmatch(r"\([A-Za-z](,[A-Za-z])+\)", squeezed):
        return True
    letter = squeezed.lstrip("\\")
    return squeezed == "" or (
        letter[:1].isalpha() and not any(sign in squeezed for sign in "+-*/^") and len(squeezed) < 20
    )


def _has_letters(text: str) -> bool:
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is not None


def _same_number(gold: str, got: str, *, percent: bool) -> bool:
    a, b = _fraction(gold), _fraction(got)
    if a is not None and b is not None:
        return a == b or (percent and (a == 100 * b or 100 * a == b))
    left, right = _parsed(gold), _parsed(got)
    if left is None or right is None:
        return False
    return _same_objects(left, right) or (percent and _same_objects(left, 100 * right))


def _fraction(text: str) -> Fraction | None:
    """The exact value of a number that needs no parser of LaTeX; None of anything else."""
    if "!" in text or "(" in text or "," in text or ":" in text or "=" in text:
        return None
    numbers = values(text)
    plain_letters = text.replace("\\frac", "").replace("\\times", "").replace("\\cdot", "").replace("\\text", "")
    return numbers[0] if numbers and len(numbers) == 1 and not any(map(str.isalpha, plain_letters)) else None


def _parsed(text: str) -> Any:
    """What math-verify reads a formula as, with its decimals exact; None where it can't."""
    for candidate in parse(f"${text}$", [_LATEX], parsing_timeout=0):  # no timeout
        if isinstance(candidate, sympy.Basic | sympy.MatrixBase):
            return _exact(candidate)
    return None


def _exact(value: Any) -> Any:
    try:
        if not value.has(sympy.Sum, sympy.Product):
            value = value.subs({name: sympy.I for name in value.free_symbols if name.name == "i"})
        return value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)})
    except Exception:  # what sympy makes of odd formulas can raise anything
        return value


def _same_objects(gold: Any, got: Any) -> bool:
    if isinstance(gold, sympy.MatrixBase) and isinstance(got, sympy.MatrixBase):
        return gold.shape == got.shape and all(map(_same_objects, gold.flat(), got.flat()))
    scalars = all(isinstance(value, sympy.Expr) and not value.has(AppliedUndef) for value in (gold, got))
    same = _same_scalars(gold, got) if scalars else None
    return _verified(gold, got) if same is None else same


def _same_scalars(gold: Any, got: Any) -> bool | None:
    """Whether two expressions agree wherever they are compared; None where they cannot be."""
    gold, got = (_exact(value.doit()) for value in (gold, got))
    names = {symbol.name for value in (gold, got) for symbol in value.free_symbols}
    if not names:
        return _same_constants(gold, got)
    if gold.has(sympy.Integral, sympy.Derivative, sympy.Limit) or got.has(
        sympy.Integral, sympy.Derivative, sympy.Limit
    ):
        return None
    pairs: list[tuple[Any, Any]] = []
    for first in range(len(_POINTS)):
        point = {name: _POINTS[(first + place) % len(_POINTS)] + place for place, name in enumerate(sorted(names))}
        a, b = (
            sympy.sympify(value.subs({symbol: point[symbol.name] for symbol in value.free_symbols}))
            for value in (gold, got)
        )
        if a.is_number and b.is_number and a.is_finite is not False and b.is_finite is not False:
            pairs.append((a, b))
    real = [(a, b) for a, b in pairs if a.is_real and b.is_real]
    compared = real if len(real) >= _LEAST_POINTS else pairs
    if len(compared) < _LEAST_POINTS:
        return None
    return all(_same_constants(a, b) for a, b in compared)


def _same_constants(a: Any, b: Any) -> bool:
    """Whether two numbers are equal: rational ones exactly, others to 45 digits, relative to the larger."""
    if a == b:
        return True
    if (a.is_Rational and b.is_Rational) or a.is_finite is False or b.is_finite is False:
        return False
    if a == 0 or b == 0:
        difference: Any = a - b
        return bool(sympy.simplify(difference) == 0)
    left, right = a.evalf(_DIGITS, maxn=400), b.evalf(_DIGITS, maxn=400)
    larger = max(abs(left), abs(right))
    return bool(abs(left - right) <= larger * _CLOSE)


def _same_relation(gold: str, got: str) -> bool:
    left, right = _parsed(gold), _parsed(got)
    return left is not None and right is not None and _verified(left, right)


def _verified(gold: Any, got: Any) -> bool:
    return bool(
        verify(gold, got, float_rounding=30, numeric_precision=50, allow_set_relation_comp=True, timeout_seconds=0)
    )


def _same_as_prose(gold: str, line: str) -> bool:
    """Whether the last formula that math-verify sees in prose is the gold answer's."""
    wanted = _parsed(read(gold).text)
    seen = next((value for value in parse(line, parsing_timeout=0) if isinstance(value, sympy.Basic)), None)
    return wanted is not None and seen is not None and _same_objects(wanted, _exact(seen))

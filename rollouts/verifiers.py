"""Verifiers for datasets: is what a model wrote right, given the gold answer? Each is a function of two texts.

Every verifier returns 0 or 1 and raises on nothing that a model may write. What a gold answer must look like is told
by :func:`gold_problem`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeAlias

from mopd.distill.errors import UserError
from mopd.rollouts.sandbox.rules import Refused, parse_program
from mopd.rollouts.sandbox.run import equal_formulas, run_tests_many

Verifier: TypeAlias = Callable[[str, str], float]

_NUMBER = re.compile(
    r"(?<![\w.])(-?)\$?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE]([+-]?\d+)(?!\w))?(?:/(\d+))?"
)
"""Sign, digits, exponent, denominator. A minus after a digit or letter is a subtraction and no sign."""
_FRACTION = re.compile(r"(\d{1,40})?\s*\\[dt]?frac\s*\{\s*(\d{1,40})\s*\}\s*\{\s*(\d{1,40})\s*\}")
_SPACE = re.compile(r"\s+")
_LONGEST_NUMBER, _LONGEST_EXPONENT = 100, 4  # characters; `1e999999999` would fill the memory
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_LETTER = r"[\s*_$(\[{]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?)?([A-HJ]|I(?!\s+[a-z]))(?![\w'])"
_ANSWER = re.compile(rf"(?i:answer)(?i:\s+is)?\s*[:=]?{_LETTER}")
_OPTION = re.compile(rf"(?i:option|choice)(?i:\s+is)?\s*[:=]?{_LETTER}")


def exact(answer: str, text: str) -> float:
    """1 if the texts are equal, where any run of white space is one blank and the ends are bare."""
    return float(text.split() == answer.split())


def number(answer: str, text: str) -> float:
    r"""1 if the last number of ``text`` has exactly the value of the last number of ``answer``.

    The last ``\boxed{...}``, where there is one, is all that is looked at. Understood are ``1,234.50``, ``-3``,
    ``1e6``, ``3/4``, ``2\frac{3}{4}``, ``$5`` and ``50%`` (which is 50). There is no tolerance: 0.333 is not 1/3.
    """
    wanted, got = last_number(answer), last_number(text)
    return float(wanted is not None and wanted == got)


def choice(answer: str, text: str) -> float:
    r"""1 if ``text`` names the option (A to J) that ``answer`` names.

    Looked for in this order: the last ``\boxed{B}``; the last "answer is (B)" or "Answer: B"; the last "option B" or
    "choice B"; a text that is nothing but the letter, or begins with "B)", "(B)", "B." or "B:"; the last "(B)". A
    letter elsewhere in prose is no choice.
    """
    wanted, got = chosen_letter(answer), chosen_letter(text)
    return float(wanted is not None and wanted == got)


def math(answer: str, text: str) -> float:
    r"""1 if the formula in ``text`` is mathematically equivalent to ``answer``, by math-verify in the sandbox.

    ``\boxed{...}`` goes before other formulas; an answer without delimiters is read as LaTeX. Equal texts are equal
    even where math-verify can't read them. One comparison starts a process; batches go through :func:`verify_many`.
    """
    return _math_many([answer], [text])[0]


def python_tests(tests: str, text: str) -> float:
    """1 if the program in ``text`` passes ``tests`` in the sandbox.

    The program is the last Python code block (three backticks) of ``text``, or all of it where there is none.
    ``tests`` are top-level asserts, functions ``test_*`` or ``unittest.TestCase`` classes; see
    :func:`rollouts.sandbox.run.run_tests_many`, and :mod:`rollouts.sandbox.rules` for what a program may use.
    """
    return _python_tests_many([tests], [text])[0]


def last_number(text: str) -> Fraction | None:
    """The value of the last number of a text, after :func:`number`'s rules; None if it has none."""
    boxed = _last_boxed(text)
    text = _SPACE.sub(" ", text if boxed is None else boxed)
    for written, meant in (("\u2212", "-"), ("{,}", ","), (r"\,", ""), (r"\$", "$")):
        text = text.replace(written, meant)
    numbers = _NUMBER.findall(_FRACTION.sub(_improper, text))
    if not numbers or sum(map(len, numbers[-1])) > _LONGEST_NUMBER:
        return None
    sign, digits, exponent, denominator = numbers[-1]
    if len(exponent) > _LONGEST_EXPONENT or (denominator and int(denominator) == 0):
        return None
    value = Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent or 0) / int(denominator or 1)
    return -value if sign else value


def _improper(match: re.Match[str]) -> str:
    r"""``2\frac{3}{4}`` as ``11/4``."""
    whole, numerator, denominator = match.groups()
    return f"{int(whole or 0) * int(denominator) + int(numerator)}/{denominator}"


def chosen_letter(text: str) -> str | None:
    """The option that a text names, after :func:`choice`'s rules; None if it names none."""
    text = _SPACE.sub(" ", text)  # the patterns take quadratic time on long runs of blanks
    boxed = _last_boxed(text)
    if boxed is not None and (match := re.match(_LETTER, boxed)):
        return match[1]
    if letters := _ANSWER.findall(text) or _OPTION.findall(text):
        return letters[-1]
    if match := re.fullmatch(r"[\s*_$(\[]*([A-Ja-j])[\s*_$)\].:]*", text):
        return match[1].upper()
    if match := re.match(r"\s*\(?([A-J])[).:]", text):
        return match[1]
    bracketed = re.findall(r"\(([A-J])\)", text)
    return bracketed[-1] if bracketed else None


def extract_program(text: str) -> str:
    """The last Python code block of a text (an unclosed one reaches to its end), or all of it where there is none."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text


def gold_problem(verifier: str, answer: str) -> str | None:
    """Why ``answer`` can't be the gold answer of ``verifier``, as the end of a sentence; None if it can."""
    if not answer.strip():
        return "is empty"
    if verifier == "number" and last_number(answer) is None:
        return "has no number in it"
    if verifier == "choice" and chosen_letter(answer) is None:
        return "names no option from A to J"
    if verifier == "python_tests":
        return _tests_problem(answer)
    return None


def _tests_problem(tests: str) -> str | None:
    try:
        tree = parse_program(tests, tests=True)
    except Refused as refused:
        return f"are tests that the sandbox refuses: {refused}"
    checks = any(isinstance(node, ast.Assert | ast.Raise) or _is_assertion(node) for node in ast.walk(tree))
    return None if checks else "are tests without an assert: every program would pass them"


def _is_assertion(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr.startswith("assert")


def verify(verifier: str, gold: str, text: str) -> float:
    """How right ``text`` is, 0..1, by a shipped verifier.

    Args:
        verifier: exact, number, choice, math or python_tests.
        gold: the gold answer; for python_tests the unit tests.

    Raises:
        UserError: no verifier has that name, or ``gold`` can't be a gold answer of it.
    """
    if verifier not in VERIFIERS:
        raise UserError(f"no verifier is called {verifier!r}; known: {', '.join(VERIFIERS)}")
    if problem := gold_problem(verifier, gold):
        raise UserError(f"the gold answer {problem}, which verifier {verifier} cannot use")
    return VERIFIERS[verifier](gold, text)


def verify_many(verifier: str, answers: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Verdicts of :data:`VERIFIERS`' ``verifier`` on each pair, in one batch where that is faster."""
    if verifier in _BATCHED:
        return _BATCHED[verifier](answers, texts)
    return [VERIFIERS[verifier](answer, text) for answer, text in zip(answers, texts, strict=True)]


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``, whose braces may be nested; None if there is none that closes."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for place in range(start + len(r"\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len(r"\boxed{") : place]
    return None


def _math_many(answers: Sequence[str], texts: Sequence[str]) -> list[float]:
    pairs = list(zip(answers, texts, strict=True))
    same = [exact(answer, text) or exact(answer, _last_boxed(text) or "") for answer, text in pairs]
    unequal = [pair for pair, equal in zip(pairs, same, strict=True) if not equal]
    verdicts = iter(equal_formulas(unequal) if unequal else ())
    return [1.0 if equal else float(next(verdicts)) for equal in same]


def _python_tests_many(tests: Sequence[str], texts: Sequence[str]) -> list[float]:
    jobs = [(extract_program(text), test) for test, text in zip(tests, texts, strict=True)]
    return [float(passed) for passed in run_tests_many(jobs)]


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "number": number,
    "choice": choice,
    "math": math,
    "python_tests": python_tests,
}
"""Every verifier by the name that a recipe gives in ``verifier:``; (gold answer or tests, text) -> 0 or 1."""

_BATCHED: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "math": _math_many,
    "python_tests": _python_tests_many,
}

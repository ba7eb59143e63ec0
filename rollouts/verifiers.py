"""Verifiers for datasets: is what a model wrote right, given the gold answer? Each is a function of two texts.

Every verifier returns 0 or 1 and raises on nothing that a model may write. What a gold answer must look like is told
by :func:`gold_problem`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TypeAlias

from mopd.distill.errors import UserError
from mopd.distill.verdicts import UnjudgedScore
from mopd.rollouts.answers import THOUGHTS, after_thinking, last_boxed
from mopd.rollouts.choices import chosen_letter
from mopd.rollouts.input_output import cases_problem, tests_of, whole_program
from mopd.rollouts.programs import extract_program
from mopd.rollouts.quantities import answer_values, gold_values
from mopd.rollouts.sandbox.rules import Refused, parse_program
from mopd.rollouts.sandbox.run import SandboxKind, equal_formulas, judge_programs, readable_formulas

Verifier: TypeAlias = Callable[[str, str], float]


def exact(answer: str, text: str) -> float:
    """1 if the texts are equal, where any run of white space is one blank and the ends are bare.

    A thought before the answer is no part of it, unless the gold answer has one, too.
    """
    if any(end in answer for _, end in THOUGHTS):
        return float(text.split() == answer.split())
    return float(after_thinking(text).split() == answer.split())


def number(answer: str, text: str) -> float:
    r"""1 if ``text`` answers with exactly the value of ``answer``; with all values of one such as ``10:30``, in order.

    The last ``\boxed{...}``, where there is one, is all that is looked at; one that does not close is no answer. Then
    comes what follows ``####``, then the first number after "the answer is", then the last number of the text.
    Understood are ``1,234.50``, ``1 234``, ``-3``, ``1e6``, ``3\times 10^5``, ``2^{10}``, ``3/4``, ``2 1/2``,
    ``2\frac34``, ``$5``, ``25 cm^2`` and ``50%`` (which is 50). There is no tolerance: 0.333 is not 1/3. A number
    that is part of something else, such as the 5 of ``\sqrt{5}``, has no value. See :mod:`rollouts.quantities`.
    """
    wanted = gold_values(answer)
    return float(wanted is not None and wanted == answer_values(text, len(wanted)))


def choice(answer: str, text: str) -> float:
    """1 if ``text`` names the option (A to J) that ``answer`` names, and no other.

    In the words of people: "the answer is (B)", "I'd go with B", "not A but B", "B". A letter elsewhere in prose is no
    choice, and neither are several letters. See :func:`rollouts.choices.chosen_letter`.
    """
    wanted = chosen_letter(answer)
    return float(wanted is not None and wanted == chosen_letter(text))


def math(answer: str, text: str) -> float:
    r"""1 if ``text`` answers with the mathematics of ``answer``; formulas are read by math-verify, in the sandbox.

    ``\boxed{...}`` goes before "the answer is", and that before other formulas; an answer without delimiters is LaTeX.
    Values are compared exactly, and so are brackets, units and bases where both have them. Equal texts are equal
    even where math-verify can't read them. One comparison starts a process; batches go through :func:`verify_many`.
    See :mod:`rollouts.sandbox.formulas`.
    """
    return _math_many([answer], [text])[0]


def python_tests(tests: str, text: str) -> float:
    """1 if the program in ``text`` passes ``tests`` in the sandbox.

    Which blocks of ``text`` are the program: :func:`rollouts.programs.extract_program`.
    ``tests`` are top-level asserts, functions ``test_*`` or ``unittest.TestCase`` classes; see
    :func:`rollouts.sandbox.run.run_tests_many`, and :mod:`rollouts.sandbox.rules` for what a program may use.
    """
    return verify_many("python_tests", [tests], [text])[0]


def input_output(cases: str, text: str) -> float:
    """1 if the program in ``text`` turns each input of ``cases`` into its output, in the sandbox.

    What it reads and prints, or arguments and value of a function: see :mod:`rollouts.input_output`.
    """
    return verify_many("input_output", [cases], [text])[0]


def last_number(text: str) -> Fraction | None:
    """The value of a gold answer's last number, after :func:`number`'s rules; None if it has none."""
    numbers = gold_values(text)
    return numbers[-1] if numbers else None


def gold_problem(verifier: str, answer: str) -> str | None:
    """Why ``answer`` can't be the gold answer of ``verifier``, as the end of a sentence; None if it can."""
    if not answer.strip():
        return "is empty"
    if verifier == "number" and last_number(answer) is None:
        return "is no number" if any(character.isdigit() for character in answer) else "has no number in it"
    if verifier == "choice" and chosen_letter(answer) is None:
        return "names no option from A to J"
    if verifier == "python_tests":
        return _tests_problem(answer)
    if verifier == "input_output":
        return cases_problem(answer)
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
        verifier: exact, number, choice, math, python_tests or input_output.
        gold: the gold answer; for python_tests the unit tests, for input_output the cases.

    Raises:
        UserError: no verifier has that name, or ``gold`` can't be a gold answer of it.
    """
    if verifier not in VERIFIERS:
        raise UserError(f"no verifier is called {verifier!r}; known: {', '.join(VERIFIERS)}")
    if problem := gold_problem(verifier, gold):
        raise UserError(f"the gold answer {problem}, which verifier {verifier} cannot use")
    return VERIFIERS[verifier](gold, text)


def verify_many(
    verifier: str, answers: Sequence[str], texts: Sequence[str], *, sandbox: SandboxKind | None = None
) -> list[float]:
    """Verdicts of :data:`VERIFIERS`' ``verifier`` on each pair, in one batch where that is faster.

    Args:
        sandbox: where programs are run, and how much of Python they may use; None: under the whitelist.
    """
    if verifier in _PROGRAMS:
        return _run_many(_PROGRAMS[verifier](answers, texts), sandbox or "whitelist")
    if verifier == "math":
        return _math_many(answers, texts)
    return [VERIFIERS[verifier](answer, text) for answer, text in zip(answers, texts, strict=True)]


def unreadable_golds(verifier: str, golds: Iterable[str]) -> list[str]:
    """Each gold answer that ``verifier`` can't read, in order; ``math`` finds it right in no other words."""
    different = list(dict.fromkeys(golds))
    if verifier == "math":
        readable = readable_formulas(different)
        return [gold for gold, good in zip(different, readable, strict=True) if not good]
    return [gold for gold in different if gold_problem(verifier, gold)]


def _math_many(answers: Sequence[str], texts: Sequence[str]) -> list[float]:
    pairs = list(zip(answers, texts, strict=True))
    same = [exact(answer, text) or exact(answer, last_boxed(after_thinking(text)) or "") for answer, text in pairs]
    unequal = [pair for pair, equal in zip(pairs, same, strict=True) if not equal]
    verdicts = iter(equal_formulas(unequal) if unequal else ())
    return [1.0 if equal else float(next(verdicts)) for equal in same]


def _with_tests(tests: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(extract_program(text, test), test) for test, text in zip(tests, texts, strict=True)]


def _with_cases(cases: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    jobs: list[tuple[str, str]] = []
    for case, text in zip(cases, texts, strict=True):
        tests = tests_of(case)
        jobs.append((whole_program(extract_program(text, tests), case), tests))
    return jobs


def _run_many(jobs: Sequence[tuple[str, str]], sandbox: SandboxKind) -> list[float]:
    """Verdicts on programs; of those that fail, it is told where the sandbox refused what they use."""
    verdicts = judge_programs(jobs, sandbox=sandbox)
    return [float(v.passed) if v.refused is None else UnjudgedScore("refused", v.refused) for v in verdicts]


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "number": number,
    "choice": choice,
    "math": math,
    "python_tests": python_tests,
    "input_output": input_output,
}
"""Every verifier by the name that a recipe gives in ``verifier:``; (gold answer or tests, text) -> 0 or 1."""

_PROGRAMS: dict[str, Callable[[Sequence[str], Sequence[str]], list[tuple[str, str]]]] = {
    "python_tests": _with_tests,
    "input_output": _with_cases,
}
"""Of verifiers that run programs: (gold answers, texts) -> programs with their tests."""

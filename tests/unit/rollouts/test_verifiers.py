"""Each verifier accepts what is right however it is written, and refuses what is wrong however tempting it looks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from mopd.distill.recipe import Source
from mopd.rollouts.sandbox.run import equal_formulas
from mopd.rollouts.verifiers import VERIFIERS, gold_problem, verify_many

ACCEPT = {
    "exact": [("kdmc;k", "kdmc;k"), ("a  b\nc", " a b c "), ("Paris", "Paris\n")],
    "number": [
        ("42", "The answer is 42."),
        ("1234", "so 1,234 in all"),
        ("#### 1,234.50", "$1234.5"),
        ("50%", "that is 50 %"),
        ("-3", "x = \u22123"),
        ("-3", "first 7, then -3"),
        ("0.75", r"\boxed{\frac{3}{4}} of 12"),
        ("3/4", "0.75"),
        ("2.75", r"$2\frac{3}{4}$"),
        ("7", r"\boxed{7} (I checked with 8)"),
        ("1e6", "1000000"),
        (".5", "0.50"),
        ("12345", r"12{,}345"),
        ("3", "5-3"),  # a minus after a digit is no sign: the last number is 3
        ("3", "- 7 apples\n- 3 pears"),
    ],
    "choice": [
        ("B", "B"),
        ("(B)", "b."),
        ("B", "The answer is (B)."),
        ("B", "**Answer: B** because A is wrong"),
        ("B", r"so \boxed{\text{B}}"),
        ("B", r"\boxed{B) Paris}"),
        ("B", "B) Paris"),
        ("B", "Not option A. I'd take option B"),
        ("B", "the answer is B, though option C is near"),
        ("B", "I have looked at all of them (B)"),
        ("J", "Answer: J"),
        ("I", "Answer: I."),
    ],
    "math": [
        (r"\frac{1}{2}", r"hence \boxed{0.5}"),
        ("x^2+2x+1", "$(x+1)^2$"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"$\sqrt{12}$", r"$2\sqrt{3}$"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
        ("3", "so there are 3"),
        ("no mathematics at all", "no  mathematics at all"),
    ],
    "input_output": [('{"inputs": ["1 2"], "outputs": ["3"]}', "print(sum(map(int, input().split())))")],
    "python_tests": [
        ("assert f(2) == 4", "def f(x): return x * x"),
        ("assert f(2) == 4", "Here it is:\n```python\ndef f(x):\n    return x * x\n```\nIt squares."),
        ("def test_f():\n    assert f(2) == 4", "```\ndef f(x): return 2 ** x\n```"),
    ],
}
REFUSE = {
    "exact": [("kdmc;k", "kdmc;d"), ("a b", "ab"), ("Paris", "paris"), ("Paris", "It is Paris"), ("x", "")],
    "number": [
        ("42", "43"),
        ("42", "42 or 43"),
        ("42", "no number"),
        ("42", ""),
        ("1/3", "0.333333333"),
        ("10000000", "10000001"),
        ("3", "-3"),
        ("7", r"\boxed{8} or 7"),
        ("1", "1/0"),
        ("1", "1" * 100_000),
        ("1", "1e999999999"),
        ("1", r"\frac{1}{" + "0" * 30 + "}"),
        ("2", "x2"),
        (r"2\frac{1}{2}", r"3\frac{1}{2}"),
        ("12", "1,2"),
    ],
    "choice": [
        ("A", "A cat sat on the mat"),
        ("I", "answer: I think it is B"),
        ("B", "The answer is (C)."),
        ("B", "B is wrong, so the answer is C"),
        ("B", r"(B) but \boxed{C}"),
        ("B", "Bananas"),
        ("B", ""),
        ("B", "A B C D"),
        ("B", "Looking at (A) and then (B)"),
        ("B", "The answer is Berlin"),
    ],
    "math": [
        (r"\frac{1}{2}", r"\boxed{0.51}"),
        ("x^2+2x+1", "$(x-1)^2$"),
        ("9", "$9^{9^{9^{9}}}$"),
        ("3", ""),
        ("3", r"\boxed{"),
        ("3", '__import__("os").system("true")'),
        ("words", "other words"),
    ],
    "input_output": [('{"inputs": ["1 2"], "outputs": ["3"]}', "print(4)")],
    "python_tests": [
        ("assert f(2) == 4", "def f(x): return 5"),
        ("assert f(2) == 4", "f squares"),
        ("assert f(2) == 4", ""),
        ("assert f(2) == 4", "assert f(2) == 4"),
        ("assert f(2) == 4", "while True: pass"),
    ],
}


LONG = 200_000
HOSTILE = {  # name: (verifier, text), on which a pattern that looks again from every place would take hours
    "blanks after answer": ("choice", "the answer" + " " * LONG + "?"),
    "blanks after answer is": ("choice", "answer is" + " \n" * LONG + "?"),
    "blanks after option": ("choice", "option" + "\t" * LONG + "?"),
    "blanks in braces": ("choice", r"answer \text" + " " * LONG + "{?"),
    "blanks in a box": ("choice", r"\boxed{" + " " * LONG + "?}"),
    "stars": ("choice", "answer " + "* " * LONG),
    "blanks before a fraction": ("number", "1" + " " * LONG + "x"),
    "blanks in a fraction": ("number", r"\frac{1" + " " * LONG + "x"),
    "fractions that stop": ("number", r"\frac {1} " * LONG),
    "digits": ("number", "1" * LONG + "x"),
    "groups of digits": ("number", "1" + ",111" * LONG + "1"),
    "exponents": ("number", "1e" + "1" * LONG + "x"),
    "boxes": ("number", r"\boxed{5} and " * LONG),
    "boxes that open": ("choice", r"\boxed{" * LONG),
    "words in a box": ("number", r"\boxed{5" + " ab" * LONG + "}"),
    "alternatives": ("number", "5 or " * LONG),
    "groups of blanks": ("number", "111 " * LONG),
    "dashes": ("number", "- " * LONG + "5"),
    "roots": ("number", "\u221a" * LONG + "5"),
    "answers": ("choice", "the answer is " * LONG),
    "letters": ("choice", "A, " * LONG),
    "letters in brackets": ("choice", "(A) " * LONG),
    "letters denied": ("choice", "not A " * LONG),
    "thoughts": ("choice", "<think>" * LONG),
    "fences": ("python_tests", "```python" + " " * LONG + "```\n"),
}


def test_no_text_keeps_a_verifier_busy() -> None:
    """All of these together, in a process that the kernel kills after ten seconds of processor time."""
    code = """
import json, resource, sys, time
from mopd.rollouts.programs import extract_program
from mopd.rollouts.verifiers import VERIFIERS
end = int(time.process_time()) + 10
resource.setrlimit(resource.RLIMIT_CPU, (end, end))
for name, text in json.load(sys.stdin):
    print(len(extract_program(text)) if name == "python_tests" else VERIFIERS[name]("B 7", text))
"""
    texts = json.dumps(list(HOSTILE.values()))
    done = subprocess.run([sys.executable, "-c", code], input=texts, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.split())) == (0, len(HOSTILE)), done.stderr


def test_every_verifier_of_the_schema_is_there() -> None:
    (on_offer,) = Source.model_fields["verifier"].metadata
    assert set(VERIFIERS) == set(on_offer.shipped)
    assert set(VERIFIERS) == set(ACCEPT) == set(REFUSE)


@pytest.mark.parametrize("name", ["exact", "number", "choice"])
def test_pairs_of_texts(name: str) -> None:
    assert [pair for pair in ACCEPT[name] if VERIFIERS[name](*pair) != 1.0] == []
    assert [pair for pair in REFUSE[name] if VERIFIERS[name](*pair) != 0.0] == []


@pytest.mark.parametrize("name", list(VERIFIERS))
def test_batches_agree_in_order(name: str) -> None:
    pairs, wanted = [], []
    for i in range(max(len(ACCEPT[name]), len(REFUSE[name]))):
        for table, verdict in ((ACCEPT, 1.0), (REFUSE, 0.0)):
            pairs += table[name][i : i + 1]
            wanted += [verdict] * len(table[name][i : i + 1])
    got = verify_many(name, [a for a, _ in pairs], [t for _, t in pairs])
    assert dict(zip(pairs, got, strict=True)) == dict(zip(pairs, wanted, strict=True))


def test_single_verdicts_of_the_sandboxed() -> None:
    assert VERIFIERS["python_tests"](*ACCEPT["python_tests"][1]) == 1.0
    assert VERIFIERS["math"](*ACCEPT["math"][0]) == 1.0


FORMULAS = [
    (r"\frac{\pi}{3}", r"$60^\circ$"),
    (r"\frac{3\sqrt{3}}{4}", r"$\frac{9}{4\sqrt{3}}$"),
    ("(2, 3)", r"\boxed{(2,3)}"),
    ("[0, 1)", r"$0 \le x < 1$"),
    (r"x \in (1, \infty)", r"$x > 1$"),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"$\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}$"),
    ("y = 2x + 1", "$y - 2x = 1$"),
    (r"\cos 2x", r"$1 - 2\sin^2 x$"),
    (r"\ln 4", r"$2 \ln 2$"),
    ("10!", "$3628800$"),
    (r"3 \cdot 10^4", "$30000$"),
    (r"a^2 - b^2", "$(a-b)(a+b)$"),
    (r"\sqrt[3]{27}", "$3$"),
    (r"\frac{x^2-1}{x-1}", "$x+1$"),
    ("1 + i", r"$\sqrt{2} e^{i\pi/4}$"),
    (r"\emptyset", r"$\{\}$"),
    (r"25\%", r"$\frac{1}{4}$"),
    (r"\lfloor 2.5 \rfloor", "$2$"),
    (r"\pm 2", r"$\{-2, 2\}$"),
    ("1,000", "$1000$"),
    (r"\int_0^2 x^2 dx", r"$\frac{8}{3}$"),
    (r"\sum_{k=0}^{4} 2^k", "$31$"),
]


def test_the_lock_changes_no_comparison() -> None:
    """What math-verify says unlocked, with every module within reach, it says behind the lock."""
    from mopd.rollouts.sandbox.formulas import equal

    expected = [equal(answer, text) for answer, text in FORMULAS]
    assert sum(expected) >= 8
    assert dict(zip(FORMULAS, equal_formulas(FORMULAS), strict=True)) == dict(zip(FORMULAS, expected, strict=True))


def test_math_works_off_the_main_thread() -> None:
    got: list[float] = []
    thread = threading.Thread(target=lambda: got.append(VERIFIERS["math"]("1/2", "$0.5$")))
    thread.start()
    thread.join()
    assert got == [1.0]


@pytest.mark.parametrize(
    ("verifier", "answer", "problem"),
    [
        ("exact", " ", "is empty"),
        ("number", "forty", "no number"),
        ("choice", "Paris", "no option"),
        ("python_tests", "f(2)", "without an assert"),
        ("python_tests", "import os\nassert f(os)", "'os'"),
        ("python_tests", "assert f(", "not Python"),
    ],
)
def test_a_gold_answer_that_cannot_be_one_is_told(verifier: str, answer: str, problem: str) -> None:
    message = gold_problem(verifier, answer)
    assert message is not None
    assert problem in message


def test_gold_answers_that_can_be_are_let_through() -> None:
    assert [gold_problem(name, answer) for name, pairs in ACCEPT.items() for answer, _ in pairs] == [
        None for pairs in ACCEPT.values() for _ in pairs
    ]

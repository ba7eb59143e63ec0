"""Mathematical equivalence inside the sandboxed process, by math-verify.

Reading a formula means evaluating it: sympy's parser runs Python's `eval` on what the model wrote, and `9^9^9^9` never
ends. So it happens behind the same lock and limits as generated code, whose processor time replaces the library's own
timeouts (signals, which fail off the main thread and cannot interrupt one huge multiplication).
"""

from __future__ import annotations

from typing import Any

from math_verify import parse, verify

# sympy imports parts of itself when they are first needed, and a locked process can open no file; so each kind of
# answer is compared once before the lock. (answer, text)
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
)


def prepare() -> None:
    """Import all that comparing needs."""
    for answer, text in _WARM_UP:
        equal(answer, text)


def equal(answer: str, text: str) -> bool:
    """Whether the last formula of ``text`` is mathematically the same as ``answer``.

    A boxed formula goes before others. An answer without any mathematical delimiter is read as LaTeX; so is the last
    line of a text in which no formula is found.
    """
    golds = _read(answer if _is_marked(answer) else f"${answer}$") or _read(answer)
    lines = text.strip().splitlines()
    formulas = _read(text) or (_read(f"${lines[-1]}$") if lines and not _is_marked(text) else [])
    return bool(golds and formulas) and verify(golds, formulas, timeout_seconds=0)


def _is_marked(text: str) -> bool:
    return any(mark in text for mark in ("$", r"\boxed", r"\(", r"\["))


def _read(text: str) -> list[Any]:
    return parse(text, parsing_timeout=0)  # no timeout

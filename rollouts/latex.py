r"""A formula as text: the one a text answers with, without decoration, its unit, its base, and the parts of a list.

What needs no algebra is read here: ``(1, 2]`` and ``\{1, 2\}`` are different things however a parser of LaTeX reads
them, and so are 18 cm and 18 m, ``11_2`` and ``11_3``. :mod:`rollouts.sandbox.formulas` compares what is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from mopd.rollouts.answers import after_phrase, after_thinking, last_boxed, marked

_LONGEST_TEXT = 50_000  # characters of a text that is read; an answer stands at its end

_MATH = re.compile(
    r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<![\\$])\$([^$\n]*?[^$\\\n])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_JOIN = re.compile(r"[\s,]*(?:and|or)?[\s,]*")
_SENTENCE_END = re.compile(r"\n|(?<!\b[a-z])[.!?](?:\s|$)")

_TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|boldsymbol|emph|bf)\*? ?"
_COMMAND = re.compile(rf"(?:{_TEXT}|\\underline ?)\{{")
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$?([^$]*)\$?\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\*\*(.*)\*\*",
        r"`(.*)`",
        r"\\(?:color|textcolor) ?\{[a-z]{1,20}\} ?(.*)",
        r"\\(?:displaystyle|textstyle) ?(.*)",
    )
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), meant)
    for pattern, meant in (
        (r"\s+", " "),
        (r"\*\*", ""),
        ("\u2212", "-"),
        (r"(?<=\d)(?:(?:, ?)?\\[,;: !] ?|\{,\}|[~ ,])(?=\d{3}(?!\d))", "\u0001"),  # perhaps between grouped digits
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-z])", " "),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\d) ?\{", r"\\frac{\1}{"),
        (r"\\frac ?(\\[a-zA-Z]+|[a-zA-Z]) ?(\\[a-zA-Z]+|\w)", r"\\frac{\1}{\2}"),
        (r"(\\frac ?\{[^{}]{0,60}\}) ?(\d)", r"\1{\2}"),
        (r"\\(?:left|right|big|bigl|bigr|Big|Bigl|Bigr) ?(?=\\?[()\[\]{}|])", ""),
        (r"\\langle", "("),
        (r"\\rangle", ")"),
        (r"\\l[bB]race", r"\\{"),
        (r"\\r[bB]race", r"\\}"),
        (r"\\(?:varnothing|emptyset)|\\\{ ?\\\}", r"\\emptyset"),
        (r"\\(?:le|leqslant)(?![a-z])", r"\\leq"),
        (r"\\(?:ge|geqslant)(?![a-z])", r"\\geq"),
        ("\u2264", r"\\leq "),
        ("\u2265", r"\\geq "),
        ("\u03c0", r"\\pi "),
        ("\u221e", r"\\infty "),
        ("\u221a ?([0-9]+)", r"\\sqrt{\1}"),
        ("\u00d7", r"\\times "),
        ("\u00b7", r"\\cdot "),
        (r"\\(?:ne|neq)(?![a-z])", r"\\neq"),
        (r"\^ ?\{? ?\\(?:circ|degree) ?\}?|\u00b0|\\degree(?![a-z])", r"\\text{ degrees}"),
        (rf"_ ?\{{ ?{_TEXT}\{{ ?(\w+) ?\}} ?\}}", r"_{\1}"),
        (r"^\\\{ ?[a-z] ?(?::|\\mid|\\colon|\|) ?(.*?) ?\\\}$", r"\1"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])infinity(?![a-zA-Z])", r"\\infty"),
        (rf"{_TEXT}\{{ ?([0-9A-Z]+) ?\}} ?_", r"\1_"),
        (r"(?<![a-zA-Z\\])sqrt ?\(([^()]{1,80})\)", r"\\sqrt{\1}"),
    )
)
_GROUPED = re.compile("(?<!\\d)\\d{1,3}(?:\u0001\\d{3})+(?!\\d)")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30}) ?\\(?:overline|bar) ?\{ ?(\d{1,30}) ?\}")
_SMALL_ENDS = re.compile(r"^[\s,;:]+|(?:(?<!\\)[\s.,;:]|\\[,;: !]|\\\\)+$")
_IN = re.compile(r"^[A-Za-z](?:, ?[A-Za-z])? ?\\in(?![a-z]) ?")

_UNITS: dict[str, str] = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre",
        "m": "m meter metre",
        "km": "km kilometer kilometre",
        "in": "in inch inches inche",
        "ft": "ft foot feet",
        "yd": "yd yard",
        "mi": "mi mile",
        "s": "s sec second",
        "min": "min minute",
        "h": "h hr hour",
        "day": "day",
        "week": "week wk",
        "month": "month",
        "year": "year yr",
        "mg": "mg milligram",
        "g": "g gram gm",
        "kg": "kg kilogram",
        "lb": "lb pound",
        "oz": "oz ounce",
        "ton": "ton tonne",
        "ml": "ml milliliter millilitre",
        "l": "l liter litre",
        "gal": "gal gallon",
        "quart": "quart qt",
        "pint": "pint pt",
        "cup": "cup",
        "acre": "acre",
        "dollar": "dollar usd",
        "cent": "cent",
        "euro": "euro eur",
        "degree": "degree deg",
        "radian": "radian rad",
        "mi/h": "mph",
        "km/h": "kph kmh",
        "am": "am",
        "pm": "pm",
    }.items()
    for name in names.split()
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_UNIT = re.compile(
    r"(?P<value>.*?[\d})\]!a-zA-Z|]) ?"
    rf"(?:{_TEXT}\{{ ?(?P<text>[^{{}}]*)\}}|(?<=[\d}})] )(?P<words>[a-zA-Z][a-zA-Z./ ]*)|(?<=\d)(?P<tight>[a-z]{{2,}}))"
    r"(?: ?\^ ?\{? ?(?P<power>\d) ?\}?)?",
    re.DOTALL,
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(?<![\d.])(\d{1,9}(?:\.\d{1,9})?) ?\\text\{ degrees\}")
_NO_UNIT = re.compile(r"\b(?:and|or|if|for|where|to)\b")
_BASE = re.compile(r"(?P<digits>-?[0-9A-Z]+(?:\.[0-9A-Z]+)?) ?_ ?(?:\{ ?(?P<braced>\d{1,2}|[a-z]+) ?\}|(?P<bare>\d))")
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10} | {
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
}
_SEPARATOR = re.compile(rf" ?[,;]? ?{_TEXT}\{{ ?,? ?(?:and|or) ?\}} ?| ?[,;] ?(?:and |or )?| (?:and|or) ")
_RATIO = re.compile(r"[^:,;=]*[\d}] ?(?:: ?[\d\\][^:,;=]*)+")
_MATRIX = re.compile(r"\\begin ?\{[pbv]?matrix\}(.*)\\end ?\{[pbv]?matrix\}", re.DOTALL)
_TOKEN = re.compile(r"\\[{}]|\\[a-zA-Z]+|.", re.DOTALL)
_OPEN = {"(": ")", "[": "]", r"\{": r"\}", "{": "}"}
_LONGEST_LIST = 100


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula without what stands around it.

    Attributes:
        text: its LaTeX.
        unit: in a form that equals what means the same; None where it has none, or an unknown one.
        percent: whether a percent sign was taken off.
        base: of the number, where it is written.
    """

    text: str
    unit: str | None = None
    percent: bool = False
    base: int | None = None


@dataclass(frozen=True, slots=True)
class FormulaParts:
    r"""A formula that is made of others.

    Attributes:
        kind: ``list`` where nothing is around them, ``union``, ``:`` of a ratio or a time, or the brackets: ``{}``,
            ``()``, ``[]``, ``(]``, ``[)``.
    """

    kind: str
    items: tuple[str, ...]


def final_formula(text: str) -> str | None:
    """The formula that a text answers with, as it is written; None where nothing marks one.

    Looked at in this order: the last box (one that was cut off is an empty formula), the last ``####``, what follows
    the last "the answer is", the last formula between dollars or LaTeX's own delimiters.
    """
    text = after_thinking(text)[-_LONGEST_TEXT:]  # not per token
    box = last_boxed(text)
    if box is not None:
        return box
    short = marked(text)
    if short is not None:
        return short
    phrase = after_phrase(text)
    if phrase is None:
        return _last_math(text)
    phrase = phrase.lstrip()
    sentence = _SENTENCE_END.split(phrase, maxsplit=1)[0]
    first = _MATH.search(phrase)
    if first is None or first.start() > len(sentence):
        return sentence.strip() or _last_math(text)
    return _joined_math(phrase, first.start())


def _joined_math(text: str, start: int) -> str:
    """The formula at a place, and those that follow after no more than "and", "or" or a comma."""
    contents: list[str] = []
    reached = start
    for match in _MATH.finditer(text, start):
        if contents and not _JOIN.fullmatch(text, reached, match.start()):
            break
        contents.append(next(group for group in match.groups() if group is not None))
        reached = match.end()
    return ", ".join(contents)


def _last_math(text: str) -> str | None:
    begins, reached = None, 0
    for match in _MATH.finditer(text):
        if begins is None or not _JOIN.fullmatch(text, reached, match.start()):
            begins = match.start()
        reached = match.end()
    return None if begins is None else _joined_math(text, begins)


def gold_formula(answer: str) -> str:
    """The formula of a gold answer, which is all of it where no box, ``####`` or dollars say otherwise."""
    box = last_boxed(answer)
    if box is not None:
        return box
    short = marked(answer)
    if short is not None:
        return short
    stripped = answer.strip()
    if len(stripped.splitlines()) > 1 and not stripped.startswith("\\begin"):
        return final_formula(stripped) or stripped.splitlines()[-1]
    return stripped


def read(text: str) -> Formula:
    """A formula without markdown, delimiters, money, unit, percent sign and base."""
    text = _plain(text)
    money = re.match(r"(-?) ?(?:\\?\$|\u00a3|\u20ac) ?(?=[-\d.])", text)
    unit = None
    if money:
        unit = "dollar" if "$" in money[0] else "euro" if "\u20ac" in money[0] else "pound sterling"
        text = money[1] + text[money.end() :]
    text = text.replace(r"\$", "").strip()
    percent = re.search(rf" ?(?:\\?%|{_TEXT}\{{ ?(?:percent|per cent) ?\}}|(?<=\d) ?percent)$", text)
    if percent:
        return Formula(text[: percent.start()].strip(), None, True)
    text = re.sub(r"^\\(?:approx|sim) ?", "", text)
    text = _IN.sub("", text)
    if spelling(text) in ("all real numbers", "all reals", "the real numbers", "real numbers"):
        text = r"\mathbb{R}"
    if _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\1\\pi/180)", text)
    if match := _UNIT.fullmatch(text):
        words = match["text"] if match["text"] is not None else (match["words"] or match["tight"])
        known = canonical_unit(words, match["power"])
        variable = match["text"] is None and known is None and (len(words) < 4 or match["tight"] is not None)
        if not _NO_UNIT.search(words) and not variable and re.search("[A-Za-z]", words):
            text = _SMALL_ENDS.sub("", match["value"])
            unit = known or unit
    if match := _BASE.fullmatch(text):
        base = match["braced"] or match["bare"]
        return Formula(match["digits"], unit, False, int(base) if base.isdigit() else _BASE_WORDS.get(base))
    return Formula(text, unit)


def canonical_unit(words: str, power: str | None = None) -> str | None:
    """A unit in a form that equals what means the same ("square inches" and "in" to the 2); None if it is unknown."""
    parts: list[str] = []
    for side in re.split(r"\s*(?:/|\bper\b)\s*", words.lower().strip(" .").replace("p.m", "pm").replace("a.m", "am")):
        exponent, names = 1, []
        for word in re.findall(r"[a-z]+", side):
            if word in _POWERS:
                exponent = _POWERS[word]
            else:
                names.append(_UNITS.get(word) or _UNITS.get(word.removesuffix("s")))
        if len(names) != 1 or names[0] is None:
            return None
        parts.append(names[0] if exponent == 1 else f"{names[0]}^{exponent}")
    if power and power != "1":
        parts[-1] += f"^{power}"
    return "/".join(parts)


def _plain(text: str) -> str:
    text = text.strip()
    for _ in range(8):
        before = text
        text = _SMALL_ENDS.sub("", text)
        for wrapper in _WRAPPERS:
            if (match := wrapper.fullmatch(text)) and match[1].strip():
                text = match[1].strip()
        text = _without_braces(text)
        if (command := _COMMAND.match(text)) and _closes_at(text[command.end() - 1 :]) == len(text) - command.end():
            text = text[command.end() : -1].strip()  # not per token
        if text == before:
            break
    for pattern, meant in _REWRITES:
        text = pattern.sub(meant, text)
    text = _REPEATING.sub(_repeating, _ungrouped(text))
    return _SMALL_ENDS.sub("", text).strip()


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _without_braces(text: str) -> str:
    """Braces off that stand around all of it."""
    return text[1:-1] if text[:1] == "{" and _closes_at(text) == len(text) - 1 else text  # not per token


def _ungrouped(text: str) -> str:
    """Digits in groups of three as one number; in brackets a comma separates, and so it does after other numbers."""
    bracketed = text[:1] in ("(", "[") or text[:2] == r"\{"

    def group(match: re.Match[str]) -> str:
        before, after = text[: match.start()].rstrip()[-1:], text[match.end() :].lstrip()[:1]  # not per token
        if bracketed or before == "," or after == ",":
            return match[0].replace("\u0001", ",")
        return match[0].replace("\u0001", "")

    return _GROUPED.sub(group, text).replace("\u0001", ",")


def _closes_at(text: str) -> int | None:
    """Where the bracket that a text begins with is closed, by whichever bracket; None if it is not."""
    depth = 0
    for match in _TOKEN.finditer(text):
        if match[0] in _OPEN:
            depth += 1
        elif match[0] in _OPEN.values():
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def parts(text: str) -> FormulaParts | None:
    r"""The items of a list, set, tuple, interval or union; None where a formula is none of them.

    ``a \pm b`` is the list of both.
    """
    if text == r"\emptyset":
        return FormulaParts("{}", ())
    for separator, kind in ((r"\cup", "union"), (r"\pm", "plus or minus")):
        pieces = _split(text, separator)
        if len(pieces) > 1:
            if kind == "union":
                return FormulaParts(kind, tuple(pieces))
            return _both(*pieces) if len(pieces) == 2 else None
    start = r"\{" if text.startswith(r"\{") else text[:1]
    if start in (r"\{", "(", "["):
        end = _closes_at(text)
        for close, width in ((r"\}", 2), (")", 1), ("]", 1)):
            if end is not None and text.endswith(close) and end == len(text) - width:
                items = _items(text[len(start) : end])
                kind = (start + close).replace("\\", "")
                if kind in ("{}", "()", "[]", "(]", "[)") and (len(items) > 1 or kind == "{}"):
                    return FormulaParts(kind, items)
    items = _items(text)
    if len(items) == 1 and _RATIO.fullmatch(text):
        return FormulaParts(":", tuple(item.strip() for item in text.split(":")))
    return FormulaParts("list", items) if len(items) > 1 else None


def vector_items(text: str) -> tuple[str, ...] | None:
    """The entries of a matrix of one row or one column; None of anything else."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row.strip() for row in re.split(r"\\\\", match[1]) if row.strip()]
    entries = tuple(rows) if len(rows) > 1 else tuple(entry.strip() for entry in "".join(rows).split("&"))
    return entries if len(entries) > 1 and not any("&" in entry for entry in entries) else None


def _both(before: str, after: str) -> FormulaParts | None:
    if any(mark in before + after for mark in ",;="):
        return None
    return FormulaParts("list", (f"{before}+{after}", f"{before}-{after}") if before else (after, f"-{after}"))


def _items(text: str) -> tuple[str, ...]:
    """The items of a list at its own depth."""
    if r"\begin" in text:
        return (text,)
    items, depth, start, place = [], 0, 0, 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        assert token is not None
        separator = _SEPARATOR.match(text, place) if depth == 0 else None
        if separator:
            items.append(text[start:place])
            start = place = separator.end()
            continue
        depth += (token[0] in _OPEN) - (token[0] in _OPEN.values())
        place = token.end()
    items.append(text[start:])
    return tuple(item.strip() for item in items if item.strip())[:_LONGEST_LIST]


def _split(text: str, separator: str) -> list[str]:
    """A text at each ``separator`` (a command) that stands at its own depth."""
    pieces, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in _OPEN) - (token[0] in _OPEN.values())
        if token[0] == separator and depth == 0:
            pieces.append(text[start : token.start()].strip())
            start = token.end()
    return [*pieces, text[start:].strip()]


def in_words(text: str) -> bool:
    r"""Whether a formula is words or a name (``\text{east}``, ``(B)``, ``AB``) and no algebra."""
    inside = spelling(text)
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", inside):
        return False
    wrapped = re.fullmatch(rf"{_TEXT}\{{.*\}}", text) or re.fullmatch(r"\([A-Za-z]\)", text)
    return bool(wrapped or re.search("[A-Za-z]{2,} [A-Za-z]{2,}|^[A-Za-z]{4,}$|^[A-Z]{2,}$|^[A-Z][a-z]{2,}$", inside))


def spelling(text: str) -> str:
    """Words without decoration, in small letters unless all are capitals."""
    bare = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1", text).strip(" ().,;:!\"'")
    return bare if re.fullmatch("[A-Z]+", bare) else bare.casefold()


def equation_sides(text: str) -> list[str]:
    """A formula at each ``=`` or ``\\approx`` that stands outside of braces and brackets."""
    pieces, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in _OPEN) - (token[0] in _OPEN.values())
        if depth == 0 and token[0] in ("=", r"\approx", r"\to", r"\Rightarrow"):
            if text[max(0, token.start() - 1) : token.start()] in ("<", ">", "!"):
                continue
            pieces.append(text[start : token.start()].strip())
            start = token.end()
    return [*pieces, text[start:].strip()]

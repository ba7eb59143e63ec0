r"""Reading numbers as people and models write them: units, money, LaTeX fractions, grouped digits, powers of ten.

:func:`values` reads all of a short text, and only where nothing but numbers, units and separators is in it;
:func:`answer_values` finds what a text answers with. Values are exact. A number that is part of something else, as the
5 of ``\sqrt{5}``, ``5\pi`` or ``5x``, has no value.
"""

from __future__ import annotations

import re
from fractions import Fraction

from mopd.rollouts.answers import after_phrase, after_thinking, last_boxed, marked

_LONGEST_NUMBER, _LONGEST_EXPONENT = 100, 4  # characters; `1e999999999` would fill the memory
_LARGEST_POWER = 20_000  # bits of a power's value
_LONGEST_TEXT = 50_000  # characters of a text that is read; an answer stands at its end

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"} | {
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
_OPAQUE = "\u00a4"
"""Stands for what is no rational number: a root, pi, a function's value."""

_SIMPLE = (
    ("\u2212", "-"),
    ("{,}", ","),
    (r"\$", "$"),
    (r"\%", "%"),
    (r"\left", ""),
    (r"\right", ""),
    (r"\displaystyle", ""),
    ("^{\\circ}", " degrees "),
    ("^\\circ", " degrees "),
    ("°", " degrees "),
    (r"\degree", " degrees "),
    (r"\times", "*"),
    (r"\cdot", "*"),
    ("×", "*"),
    ("·", "*"),
    ("⋅", "*"),
    (r"\{", " ( "),
    (r"\}", " ) "),
    (r"\infty", _OPAQUE),
    (r"\pi", _OPAQUE),
    ("π", _OPAQUE),
    ("√", _OPAQUE),
    ("∞", _OPAQUE),
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r"\s*\n\s*"), "\n"),
    (re.compile(r"(?<=\d)(?:\\[,;: !]|[\u2009\u202f\u00a0~'])(?=\d{3}(?!\d))"), ""),  # thin spaces between digits
    (re.compile(r"\\[,;:! ]|~|\\q?quad"), " "),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\frac ?(\d) ?(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac ?(\d) ?\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac ?\{[^{}]{0,60}\}) ?(\d)"), r"\1{\2}"),
    (re.compile(r"\\(?:color|textcolor) ?\{[a-z]{1,20}\}"), ""),
    (re.compile(r"\\underline ?\{([^{}]{0,200})\}"), r"\1"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\*? ?\{([^{}]{0,200})\}"), r" \1 "),
    (re.compile(r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|binom)(?![a-z])"), _OPAQUE),
    (re.compile(r"\b(?:sqrt|sin|cos|tan|log|ln|exp) ?(?=\()"), _OPAQUE),
    (re.compile(rf"{_OPAQUE} ?(?:\[[^\]]{{0,20}}\])? ?[_^]? ?(?:\{{[^{{}}]{{0,60}}\}}|\([^()]{{0,60}}\))"), _OPAQUE),
    (re.compile(rf"{_OPAQUE} ?[_^]? ?\d{{1,40}}"), _OPAQUE),
    (re.compile(r"(?<=\d)\*\*(?=-?\d)"), "^"),
    (re.compile(r"(?<![\d\s)}])\*+|\*+(?![\d\s(*{])|\*\*+|__+|`+|(?<!\w)_|_(?!\w|\{)"), ""),  # emphasis
    (re.compile(r"(?<=[A-Za-z]) ?\^ ?\{? ?-?[1-6] ?\}?"), ""),  # the exponent of a unit
)
_FRACTION = re.compile(r"\\frac ?\{ ?([^{}]{1,60}?) ?\} ?\{ ?([^{}]{1,60}?) ?\}")
_WHOLE = re.compile(r"[+-]? ?(?:\d{1,40}(?:,\d{3}){0,12}(?:\.\d{1,40})?|\.\d{1,40})")

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d])|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+"
_NUMBER = re.compile(
    r"(?<!\w)(?<!\d[.])"
    r"(?:(?P<whole>\d{1,4}) (?P<over>\d{1,20}) ?/ ?(?P<under>\d{1,20})(?![\d.]\d|\d)"
    rf"|(?P<digits>{_DIGITS})"
    r"(?:[eE](?P<exponent>[+-]?\d+)(?!\w))?"
    r"(?: ?[*xX] ?10 ?\^ ?\{? ?(?P<ten>[+-]?\d+) ?\}?)?"
    r"(?: ?\^ ?\{? ?(?P<power>-?\d+) ?\}?)?"
    r"(?: ?/ ?(?P<denominator>\d+(?:\.\d+)?)(?!\.?\d| ?/ ?\d))?"
    r"(?:_ ?\{? ?(?P<base>\d{1,2}) ?\}?)?)"
    r"(?: ?(?P<scale>hundred|thousand|million|billion|trillion)s?\b(?!-))?",
    re.IGNORECASE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CURRENCY = "[$£€¥₹]"
_TIGHT_SIGN = re.compile(rf"(?:(?<![\w)\]}}%.-])-{_CURRENCY}?|{_CURRENCY}-)$")
_LOOSE_SIGN = re.compile(
    rf"(?:^|[=:(\[{{,;$]|\b(?:is|to|get|gives?|equals?|are|be|and|or|by|of|answer|about)\b)\s?"
    rf"(?P<sign>(?:[-\u2013]|minus|negative)\s?{_CURRENCY}?\s?)$|\b(?P<word>negative {_CURRENCY}?)$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:^|\n) ?[-\u2013] $")
_TAINT_BEFORE = re.compile(rf"(?:{_OPAQUE}|[A-Za-z]\^) ?\*? ?[{{(]? ?-?$")
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|rho|sigma|tau|omega"
_TAINT_AFTER = re.compile(rf" ?\*? ?(?:{_OPAQUE}|\\(?:{_GREEK})(?![a-z]))| ?\^|[xyzn](?![A-Za-z\d])")
_OPERATION = re.compile(r"\s?[-+*/\u00f7\u2013]\s?[\d($.]")

_WORD = (
    r"(?<![A-Za-z'\u2019-])(?!(?:plus|minus|times|over|divided|squared|cubed|pi)\b)"
    r"(?:[A-Za-z\u00b5\u03bc][A-Za-z'\u2019-]{1,29}|[mgshlLNJWVAKCFTB])(?![A-Za-z'\u2019-])"
)
"""A word, or the letter of a unit; other single letters are variables."""
_FILLER = re.compile(
    rf"(?:\s|{_CURRENCY}|%|{_WORD}(?:\s?/\s?{_WORD})*+|[,;:.()\[\]&!?\"\u201c\u201d])*+", re.IGNORECASE
)
_EQUALS = re.compile(
    r"=|\u2248|\\approx|\\implies|\\Rightarrow|\b(?:which is|equals|that is|i\.e\.|or simply)\b", re.IGNORECASE
)
_OR = re.compile(
    rf"\s*+(?P<unit>{_WORD})??(?:\s{_WORD})?\s*+,?\s*+(?<!\w)or\b\s*+(?:maybe|perhaps|possibly|even)?\s*+{_CURRENCY}?\s*+",
    re.IGNORECASE,
)
_DENIED = re.compile(rf"\b(?:not|rather than|instead of) {_CURRENCY}?-?$", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[,;:\n]|[.!?]\s+\S|\b(?:and|so|then|or|which|but|is|are|leaves|makes|gives)\b|[-+*/^\u00a4\\]", re.IGNORECASE
)
"""What begins another thought after a result."""
_CIRCUMSTANCE = re.compile(
    rf"[^.=:;?!\n]*\b(?:after|over|within|during|for|in)\s(?:the\s|all\s|only\s|just\s)?{_CURRENCY}?", re.IGNORECASE
)
"""Before a number that says under which circumstances the one before it holds: "45 miles after 4 hours"."""
_BETWEEN = re.compile(rf"\bbetween\s{_CURRENCY}?\s?-?$", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(?:a|answer|final answer)\s*[:=]\s*(?=\S)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?:\s|$)")
_WORDS = re.compile("[A-Za-z]{2,}")
_PROSE = re.compile(r"\b(?!(?:and|or|am|pm|USD|EUR|GBP)\b)[A-Za-z]{2,}", re.IGNORECASE)
_REMARK = re.compile(r"\s\([^()]{0,120}[A-Za-z]{3}[^()]{0,120}\)\W*\Z")
_FACTORIAL = re.compile(r"\d\s?!")
_LONGEST_VALUE = 8  # words besides numbers of a gold answer of several numbers


def plain(text: str) -> str:
    """A text with LaTeX, unicode and markdown of its numbers written plainly; roots and functions become one sign."""
    if _OPAQUE in text:
        text = text.replace(_OPAQUE, "$")
    text = re.sub(r"[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    for written, meant in _VULGAR.items():
        text = text.replace(written, f" {meant}")
    for written, meant in _SIMPLE:
        text = text.replace(written, meant)
    for pattern, meant in _REWRITES:
        text = pattern.sub(meant, text)
    return re.sub(" +", " ", _FRACTION.sub(_plain_fraction, text))


def _plain_fraction(match: re.Match[str]) -> str:
    over, under = match[1], match[2]
    if not (_WHOLE.fullmatch(over) and _WHOLE.fullmatch(under)):
        return _OPAQUE
    top, bottom = (Fraction(part.replace(",", "").replace(" ", "")) for part in (over, under))
    if bottom == 0:
        return _OPAQUE
    value = top / bottom
    return f" {'-' if value < 0 else ''}{abs(value.numerator)}/{value.denominator} "


def _value(match: re.Match[str], text: str) -> Fraction | None:
    """The value of a number, sign included; None where it is part of something that is no number."""
    if len(match[0]) > _LONGEST_NUMBER or _TAINT_AFTER.match(text, match.end()):
        return None
    if _TAINT_BEFORE.search(text, max(0, match.start() - 8), match.start()):
        return None
    value = _magnitude(match)
    return -value if value is not None and _start(match, text) < match.start() else value


def _magnitude(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if part["whole"]:
        over, under = int(part["over"]), int(part["under"])
        if over >= under:  # two numbers, the second a quotient
            return None if under == 0 else Fraction(over, under)
        return (int(part["whole"]) + Fraction(over, under)) * _scale(match)
    digits = part["digits"].replace(",", "").replace(" ", "")
    if part["base"]:
        return _in_base(digits, int(part["base"]))
    if any(len(part[name] or "") > _LONGEST_EXPONENT for name in ("exponent", "ten", "power")):
        return None
    value = Fraction(digits) * Fraction(10) ** (int(part["exponent"] or 0) + int(part["ten"] or 0))
    if part["power"]:
        power = int(part["power"])
        bits = abs(power) * max(value.numerator.bit_length(), value.denominator.bit_length())
        if bits > _LARGEST_POWER or (value == 0 and power < 0):
            return None
        value = Fraction(value**power)
    below = Fraction(part["denominator"] or 1)
    return None if below == 0 else value / below * _scale(match)


def _scale(match: re.Match[str]) -> int:
    scale = match["scale"]
    return 10 ** _SCALES[scale.lower()] if scale else 1


def _in_base(digits: str, base: int) -> Fraction | None:
    if "." in digits or not 2 <= base <= 36:
        return None
    try:
        return Fraction(int(digits, base))
    except ValueError:
        return None


def _start(match: re.Match[str], text: str) -> int:
    """Where a number begins, with its sign. A dash after a digit or a letter is a subtraction, one before an item of a
    list a bullet.
    """
    window = max(0, match.start() - 24), match.start()
    if tight := _TIGHT_SIGN.search(text, *window):
        return tight.start()
    loose = _LOOSE_SIGN.search(text, *window)
    if loose is None or (_BULLET.search(text, *window) and ("\n" in text or re.search("[A-Za-z]", text))):
        return match.start()
    return loose.start("sign" if loose["sign"] else "word")


def values(text: str) -> tuple[Fraction, ...] | None:
    """All numbers of a short text that has nothing but numbers, units and separators in it; None where it has more.

    What stands before the last ``=`` is left out.
    """
    return _strict(plain(text[-_LONGEST_TEXT:]))  # not per token


def _strict(text: str) -> tuple[Fraction, ...] | None:
    text = _EQUALS.split(text)[-1].strip()
    place, numbers = 0, list[Fraction]()
    for match in _NUMBER.finditer(text):
        value = _value(match, text)
        if value is None or not _FILLER.fullmatch(text, place, max(place, _start(match, text))):
            return None
        numbers.append(value)
        place = match.end()
    return tuple(numbers) if numbers and _FILLER.fullmatch(text, place) else None


def _numbers(text: str) -> list[re.Match[str]]:
    """The numbers of prose, without those that it denies: the 9 of "$7, not $9"."""
    return [
        match for match in _NUMBER.finditer(text) if not _DENIED.search(text, max(0, match.start() - 16), match.start())
    ]


def _after_equals(text: str) -> str:
    """Prose up to the number that follows the last ``=``, where no clause of its own comes after that."""
    equals = text.rfind("=")
    number = None if equals < 0 else _NUMBER.search(text, equals)
    if (
        number is None
        or _CLAUSE.search(text, number.end())
        or text[equals + 1 : number.start()].strip(" $\u20ac\u00a3-")
    ):
        return text
    return text[: number.end()]


def _last_values(text: str, count: int) -> tuple[Fraction, ...] | None:
    """The last ``count`` numbers of prose; None where there are fewer, or the text leaves open which one it means."""
    matches = _numbers(text)[-max(count, 2) :]  # not per token
    if len(matches) < count:
        return None
    if count == 1 and len(matches) == 2 and _CIRCUMSTANCE.fullmatch(text, matches[0].end(), matches[1].start()):
        return _last_values(text[: matches[1].start()], 1)
    if count == 1 and len(matches) == 2 and _is_open(text, *matches):
        return None
    numbers = [_value(match, text) for match in matches[-count:]]  # not per token
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _first_values(text: str, count: int) -> tuple[Fraction, ...] | None:
    """The first ``count`` numbers of a sentence that follows "the answer is"; None where there are fewer, or more that
    could be meant.
    """
    sentence = _EQUALS.split(text)[-1]
    matches = _numbers(sentence)
    if len(matches) < count:
        return None
    if count == 1 and len(matches) > 1 and _is_open(sentence, *matches[:2]):
        return None
    if count == 1 and _OPERATION.match(sentence, matches[0].end()):
        return None
    numbers = [_value(match, sentence) for match in matches[:count]]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _is_open(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    """Whether two numbers are alternatives ("5 or 6", "between 5 and 6"), and not "1 hour or 60 minutes"."""
    between = text[first.end() : second.start()]
    if _BETWEEN.search(text, max(0, first.start() - 20), first.start()) and re.fullmatch(
        rf"\s?\w*\s?and\s?{_CURRENCY}?", between
    ):
        return True
    either = _OR.fullmatch(between)
    if either is None or _value(first, text) == _value(second, text):
        return False
    unit = re.match(rf"\s*({_WORD})", text[second.end() : second.end() + 32])
    return either["unit"] is None or unit is None or either["unit"].lower() == unit[1].lower()


def gold_values(answer: str) -> tuple[Fraction, ...] | None:
    """The numbers that an answer must have: one as a rule, all of a gold answer such as ``10:30`` or ``(2, 5)``.

    What follows the last ``####``, stands in the last box, or on the last line is the gold answer. One that has more
    than a few words besides its numbers is prose, whose last number counts. None where it has no value.
    """
    box = last_boxed(answer)
    text = box if box is not None else (marked(answer) or (answer.strip().splitlines() or [""])[-1])
    text = plain(_LABEL.sub("", text))
    numbers, words = _strict(text), _WORDS.findall(text)
    if numbers is not None and (len(numbers) == 1 or len(words) <= _LONGEST_VALUE):
        return numbers
    return _last_values(text, 1) if words and box is None else None


def answer_values(text: str, count: int) -> tuple[Fraction, ...] | None:
    """The numbers that a text answers with, where ``count`` are expected; None where it has no such answer.

    Looked at in this order: the last box, what follows the last ``####``, a text that is nothing but numbers, what
    follows the last "the answer is", the last numbers of the text.
    """
    text = after_thinking(text)
    box = last_boxed(text)
    if box is not None:
        return None if _FACTORIAL.search(box) else values(box)
    short = marked(text)
    text = plain((text if short is None else short)[-_LONGEST_TEXT:]).strip()  # not per token
    if "\n" not in text and not _PROSE.search(text) and (numbers := _strict(text)) is not None:
        return numbers if len(numbers) >= count else _last_values(text, count)
    phrase = after_phrase(text)
    sentence = "" if phrase is None else _SENTENCE_END.split(phrase.lstrip(), maxsplit=1)[0]
    if _NUMBER.search(sentence):
        return _first_values(sentence, count)
    remark = _REMARK.search(text)
    text = _after_equals(text) if count == 1 else text
    return _last_values(text[: remark.start()] if remark and _NUMBER.search(text, 0, remark.start()) else text, count)

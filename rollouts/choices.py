r"""Which option a text names, A to J, in the words of people and models; none where it names several, or denies it.

Every mention of an option ("(B)", "B)", "**B**", ``\text{(B)}``) becomes one sign; denied ones ("not A", "A and D
are wrong", "rather than C") are taken out; of what is left the strongest kind of statement decides, and of its kind the
last.
"""

from __future__ import annotations

import re

from mopd.rollouts.answers import after_thinking, last_boxed, marked

_LONGEST_TEXT = 50_000  # characters of a text that is read; an answer stands at its end

_PLAIN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r" ?\n\s*"), "\n"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|fbox)\*? ?\{"), " "),
    (re.compile(r"\\[ ,;:!]|~"), " "),
    (re.compile(r"[*_`$\"\u201c\u201d{}<>\u2039\u203a]|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)|\\[()]"), ""),
    (re.compile(r" +"), " "),
)
_AFTER_A = r"(?:is|was|are|would|must|should|because|since|and|or|nor|but|not|it is)\b"
_EPITHET = (
    r"\. (?!(?:it|this|that|the|there|they|he|she|what|which)\b)[a-z]+ "
    r"(?:is|are|was|were|has|have|can|causes?|lives?)\b"
)
"""What follows the first letter of a species: "C. elegans is a worm"."""
_NAMED_BY_LETTERS = ("plan", "vitamin", "type", "hepatitis", "grade", "group", "class", "team", "influenza")
_NOT_A_NAME = "".join(rf"(?<!(?i:{noun}) )" for noun in _NAMED_BY_LETTERS)
"""Before a letter that is part of a name."""
_BEFORE_SMALL = "|".join(
    rf"(?<={before})"
    for before in ("^", "\n", "answer ", "answer: ", "answer:", "answer:\n", "is ", "is: ", "option ", "choice ")
)
_MENTION = re.compile(
    r"(?<!\w)[(\[] ?(?P<bracketed>[A-Ja-j]) ?[)\]]"
    rf"|(?<![\w'\u2019-]){_NOT_A_NAME}"
    rf"(?P<bare>[B-HJ]|A(?! [a-z])|A(?= {_AFTER_A})|I(?! [a-z]|\n[a-z])|I(?= (?:is|was)\b))"
    rf"(?![\w'\u2019]|-\w|\.\w|{_EPITHET})\)?"
    rf"|(?i:{_BEFORE_SMALL})(?P<small>[a-j])(?:\)|(?=[.,;:!?\n]|$| (?:or|and)\b| ?[/&]))"
)

_L = "\u2039[A-J]\u203a"
_SEPARATOR = r"(?: ?(?:,|/|&|\+) ?| )(?:(?:and|or|nor|maybe|perhaps|possibly|also|even|option|choice|both|either) )*+"
_LIST = rf"{_L}(?:{_SEPARATOR}{_L}){{0,12}}+"
_NOUN = r"(?:options?|choices?|answers?|letters?|statements?)"

_QUESTION = re.compile(rf"{_LIST} ?\?")
_DENIALS: tuple[re.Pattern[str], ...] = (
    re.compile(
        r"\b(?:not|cannot be|can't be|\w+n['\u2019]t(?: be)?|rather than|instead of|than|over|rul(?:es?|ed|ing) out|"
        r"(?:eliminat|exclud)(?:e|es|ed|ing)|(?:discard|reject)(?:s|ed|ing)?|dismiss(?:es|ed|ing)?|neither|unlike|"
        r"except|versus|vs\.?|none of|between|without|against)"
        rf"(?: (?:be|is|both|the|all|of|either|{_NOUN})){{0,4}} ?{_LIST}",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?:{_NOUN} )?{_LIST}:?,? ?"
        r"(?:(?:is|are|was|were|can|could|must|do|does|would|both|all|also|clearly|definitely|simply) ){0,4}"
        r"(?:\w+n['\u2019]t\b|(?:not|cannot|wrong|incorrect|false|eliminated|ruled out|out|invalid|impossible)\b|"
        r"(?:a )?distractors?\b|(?:(?:seems?|looks?|sounds?|may|might|be|look|seem|also) ){0,4}"
        r"(?:plausible|tempting|close|near|similar)\b)",
        re.IGNORECASE,
    ),
    _QUESTION,
)

_FILL = (
    r"(?:[ \n:=,\u2014\u2013\u2192-]|\b(?:is|was|be|must|should|would|will|has|to|that|thus|then|therefore|"
    r"clearly|definitely|probably|likely|most|simply|also|indeed|actually|obviously|certainly|surely|instead|but|it|the|"
    r"option|choice|letter|answer|correct|right|best|final|could|might|may|maybe|only|either|both|in fact)\b){0,14}"
)
_CUE = (
    r"\b(?:answers?\b(?:['\u2019]s\b)?|ans\b\.?)"
    r"|\b(?:option|choice|answer|statement|one) that [^.\n\u2039]{1,60}? (?:is|would be)\b"
    r"|\b(?:correct|right|best|option|choice|solution|selection|pick|guess|conclusion)"
    r"(?: (?:option|choice|pick|guess|one))?(?: here| in this case)?"
    r"(?:['\u2019]s| (?:is|was|must be|should be|would be|will be|has to be)\b| ?[:=\u2014\u2013-])"
    r"|\b(?:cho(?:ose|se|osing)|pick(?:ed|ing)?|select(?:ed|ing)?|take|go(?:ing)? (?:with|for)|went with|say|guess|"
    r"conclude|believe|think|vote for|left with|leaves|leaving|settle on|lean(?:ing)? towards?|must be|points? to)\b"
    r"|\b(?:it|that|this)(?:['\u2019]s| (?:is|was|must be|has to be|should be|would be|can only be))\b"
    r"|\b(?:so|therefore|thus|hence|ergo|actually|instead|finally)\b"
)
_STATED = re.compile(
    rf"(?:{_CUE}){_FILL}(?P<before>{_LIST})"
    rf"|(?P<after>{_LIST}):? "
    r"(?:(?:is|are|was|must be|would be|should be|has to be|(?:seems|looks|appears|sounds)(?: to be| like)?) )?"
    r"(?:(?:also|clearly|definitely|indeed|therefore|thus|likely|probably|the|most|both|only|one|option|choice) ){0,4}"
    r"(?:correct|right|best|better|true|answer|accurate|appropriate|suitable|it is|fits?|wins)\b",
    re.IGNORECASE,
)
_ADVERB = (
    r"(?:(?:definitely|certainly|clearly|obviously|surely|probably|likely|most likely|final|finally|overall|yes|no|ok|"
    r"okay|without (?:a |any )?doubt|(?:in|to) (?:conclusion|summary|short|sum|summarize|conclude)|by elimination)"
    r"[ ,:]{1,3})?"
)
_ALONE = re.compile(
    rf"(?:^|[.!?;]\s|\n)[\s.:#>=\u2192\u21d2\u2234-]{{0,8}}(?i:{_ADVERB})(?P<list>{_LIST})"
    r"[.:!;,]{0,4} ?(?=$|\n|(?<=[.!;] ))"
)
_NAMED = re.compile(rf"\b(?:option|choice|letter) ?(?P<list>{_LIST})", re.IGNORECASE)
_BEGINS = re.compile(rf"(?:^|\n)[ #>.-]{{0,8}}{_L} ?(?:[).:,=\u2014\u2013-]|(?=$|\n|[A-Z\d(\\]))")
_BRACKETED = re.compile(r"[(\[][A-J][)\]]")
_ADJACENT = re.compile(r"\W*[A-J]{2,10}\W*")


def chosen_letter(text: str) -> str | None:
    """The option that a text names; None where it names none, or leaves open which one.

    Looked at in this order: the last box; the last ``####`` or ``<answer>``; statements such as "the answer is B", "I'd
    go with B", "B is correct"; a line or sentence that is nothing but the letter; the one line that begins with "B)",
    if it is the first; a text that has a "(B)" or names "option B", and mentions no other.
    """
    text = after_thinking(text)[-_LONGEST_TEXT:]  # not per token
    for short in (last_boxed(text), marked(text)):
        if short is not None:
            bare = _without_decoration(short)
            if not bare or _ADJACENT.fullmatch(bare):
                return None
            if match := re.match(rf"[\s.]*(?:{_NOUN} )?({_LIST})", _with_signs(bare), re.IGNORECASE):
                return _only(match[1])
    text = _without_decoration(text)
    if small := re.fullmatch(r"[\s.:]*([a-j])[\s.:!)]*", text):
        return small[1].upper()
    bracketed = _BRACKETED.search(text)
    text = _with_signs(text)
    for denial in _DENIALS:
        text = denial.sub(" . " if denial is _QUESTION else " ", text)
    if stated := list(_STATED.finditer(text)):
        last = stated[-2:] if re.search(r"\balso\b", stated[-1][0]) else stated[-1:]  # not per token
        return _only(" ".join(match["before"] or match["after"] for match in last))
    if alone := _ALONE.findall(text):
        return _only(alone[-1])
    first, _, rest = text.partition("\n")
    if _BEGINS.match(first) and not _BEGINS.search(rest) and (letter := _only(first)):
        return letter
    return _only(text) if bracketed or _BEGINS.search(text) or _NAMED.search(text) else None


def _without_decoration(text: str) -> str:
    for pattern, meant in _PLAIN:
        text = pattern.sub(meant, text)
    return text.strip()


def _with_signs(text: str) -> str:
    """A text in which every mention of an option is a sign of its own."""

    def sign(match: re.Match[str]) -> str:
        return f"\u2039{(match['bracketed'] or match['bare'] or match['small']).upper()}\u203a"

    return _MENTION.sub(sign, text)


def _only(mentions: str) -> str | None:
    """The letter of mentions that are all of one option."""
    letters = set(re.findall(_L, mentions))
    return letters.pop()[1] if len(letters) == 1 else None

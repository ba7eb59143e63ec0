"""Which program a text answers with: code blocks as people and models write them, and those of them that are needed."""

from __future__ import annotations

import ast
import itertools
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mopd.rollouts.answers import THOUGHTS, after_thinking

_FENCE = re.compile(
    r"^(?P<indent>[ \t>]*)(?P<mark>`{3,}|~{3,})[ \t]*\{?\.?(?P<language>[\w+#.-]*)[^\n`]*$", re.MULTILINE
)
_PYTHON = frozenset({"python", "py", "python3", "py3", "python3.11", "python3.12", "cpython", "ipython", "ipython3"})
_INDENTATION = "    "
_LONGEST_BLOCK = 50_000  # characters that are parsed; the sandbox takes no longer programs


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block.

    Attributes:
        named: its language is given, as Python.
        closed: it ends in a fence.
        tree: what it parses as; None where it is no Python.
    """

    source: str
    named: bool
    closed: bool
    tree: ast.Module | None

    @property
    def definitions(self) -> frozenset[str]:
        """Functions and classes of its top level."""
        return frozenset(
            node.name
            for node in _top_level(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        )

    @property
    def bound(self) -> frozenset[str]:
        """Every name that its top level binds: functions, classes, imports, variables."""
        names = set(self.definitions)
        for node in _top_level(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
        return frozenset(names)


def extract_program(text: str, tests: str = "") -> str:
    """The program that a text answers with.

    All of a text without a Python block is the program. Blocks are fenced by backticks or tildes, at any indentation;
    one that is not closed reaches to the end. A block counts as Python if it says so (``python``, ``py``, ``python3``,
    any case), or names no language and is Python that defines a function or a class. Of several blocks the last that
    defines what ``tests`` use is taken, and with it those, in the order of the text, that define what it needs:
    examples of use, printed output and older versions are left out.

    Args:
        tests: what the program has to pass, where it is known.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not any(end in tests for _, end in THOUGHTS):
        text = after_thinking(text)
    blocks = _python_blocks(text)
    if not blocks:
        return text
    readable = [block for block in blocks if block.tree is not None]
    if not readable or (blocks[-1].named and blocks[-1].tree is None and not blocks[-1].closed):
        return blocks[-1].source  # an answer that was cut off is none, whatever stood before it
    chosen = _chosen(readable, _used(tests))
    return "\n".join(readable[place].source for place in sorted(chosen))


def continued(before: str, text: str, tests: str) -> str:
    """The program that an answer makes with the code that it goes on from, for example a signature and its docstring.

    An answer that begins with an indented line, or returns outside of any function, is the body that the code lacks:
    up to the first line that is not indented, or all of it where a block's own indentation was taken off. Any other is
    a program of its own, and what it defines takes the place of what the code before it does.

    Example:
        ``continued("def f(x):\\n", "    return x\\nprint(1)", "assert f(1)")`` is ``"def f(x):\\n    return x"``.

    Source: HumanEval runs prompt + completion, cut where the body ends; Chen et al., arXiv 2107.03374, section 3.
    """
    program = extract_program(text, tests)
    lines = program.split("\n")
    joint = "" if before.endswith("\n") else "\n"
    first = next((line for line in lines if line.strip()), "")
    if first[:1] in (" ", "\t"):
        body = itertools.takewhile(lambda line: not line.strip() or line[:1] in (" ", "\t"), lines)
        return before + joint + "\n".join(body).rstrip()
    if any(isinstance(node, ast.Return) for node in _top_level(_parse(program))):
        return before + joint + textwrap.indent(program, _INDENTATION).rstrip()
    return f"{before}\n\n{program}"


def _chosen(blocks: Sequence[CodeBlock], wanted: frozenset[str]) -> set[int]:
    """Places of the blocks that define what is wanted, and what they need themselves."""
    places = range(len(blocks))
    defining = [place for place in places if blocks[place].definitions]
    asked = [place for place in defining if blocks[place].definitions & wanted]
    start = (asked or defining or places)[-1]
    chosen, needed = {start}, (wanted & _all_bound(blocks)) | _used(blocks[start].source)
    while missing := needed - frozenset[str]().union(*(blocks[place].bound for place in chosen)):
        # The last block that has it, before all others one that does more than show how it is called.
        offers = [p for p in defining if blocks[p].bound & missing] or [p for p in places if blocks[p].bound & missing]
        if not offers:
            break
        chosen.add(offers[-1])
        needed |= _used(blocks[offers[-1]].source)
    return chosen


def _all_bound(blocks: Sequence[CodeBlock]) -> frozenset[str]:
    return frozenset[str]().union(*(block.bound for block in blocks))


def _python_blocks(text: str) -> list[CodeBlock]:
    """Blocks that say they are Python; where none does, those without a language that are."""
    blocks = list(_blocks(text))
    named = [block for block in blocks if block.named]
    unnamed = [block for block in blocks if not block.named and block.tree is not None]
    if any(block.definitions for block in named) or not any(block.definitions for block in unnamed):
        return named or unnamed
    return [block for block in blocks if block.tree is not None]


def _blocks(text: str) -> Iterator[CodeBlock]:
    """Blocks of Python or of no named language, in their order."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence["mark"].startswith(opened["mark"]) and not fence["language"]:
            if _may_be_python(opened):
                yield _block(text, opened, fence.start())
            opened = None
    if opened is not None and _may_be_python(opened):
        yield _block(text, opened, None)


def _may_be_python(opened: re.Match[str]) -> bool:
    return not opened["language"] or opened["language"].lower() in _PYTHON


def _block(text: str, opened: re.Match[str], end: int | None) -> CodeBlock:
    inside = text[opened.end() : end].removeprefix("\n")
    if opened["indent"]:
        quoted = [re.sub(r"^[ \t]*> ?", "", line) if ">" in opened["indent"] else line for line in inside.split("\n")]
        inside = "\n".join(quoted)
    source = textwrap.dedent(inside)
    return CodeBlock(source, bool(opened["language"]), end is not None, _parse(source))


def _parse(source: str) -> ast.Module | None:
    if len(source) > _LONGEST_BLOCK:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the code's own escapes
            return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _top_level(tree: ast.Module | None) -> Iterator[ast.AST]:
    """Nodes outside of the bodies of functions and classes."""
    rest: list[ast.AST] = [] if tree is None else list(tree.body)
    while rest:
        node = rest.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            rest += ast.iter_child_nodes(node)


def _used(source: str) -> frozenset[str]:
    """Names that a block takes from outside of its functions' own."""
    names: set[str] = set()
    try:
        tables = [symtable.symtable(source, "program", "exec")]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return frozenset()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outside = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (outside or s.is_global())}
    return frozenset(names)

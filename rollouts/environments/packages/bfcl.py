"""Cases of several turns of ``bfcl-eval``, with the package's own simulators and checker: files, flights, trades, cars.

A user asks one thing after the other. The model calls functions of simulated programs until it writes a message without
a call; then comes what the user asks next, and after the last of it the package's checker compares, turn by turn, the
state that the calls left the programs in, and what they gave, with what the package's own calls do.

Sources: "The Berkeley Function Calling Leaderboard (BFCL)", Patil et al. 2025; the package ``bfcl-eval`` 2026.3.23, its
``inference_multi_turn_FC`` for what is shown when.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib.util
import json
import keyword
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mopd.distill.types import RunError, UserError
from mopd.rollouts.environments.base import Step, Turn
from mopd.rollouts.environments.packages import bfcl_simulators
from mopd.rollouts.environments.tools import ERROR, Tool
from mopd.rollouts.tasks.base import TaskSplit, place_in_turn, refuse_unknown_split, split_of

INSTALL = "pip install 'mopd[envs]' && pip install --no-deps bfcl-eval"
CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
CASES, ANSWERS = "BFCL_v4_{}.json", "possible_answer/BFCL_v4_{}.json"
FUNCTIONS = "multi_turn_func_doc/{}.json"
FILES = {
    "GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
    "TwitterAPI": "posting_api", "TicketAPI": "ticket_api", "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking", "VehicleControlAPI": "vehicle_control",
}  # fmt: skip
"""Where the functions of a simulated program are described."""
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""What the package calls types that JSON schemas call otherwise."""
FAILED_CALL = "Error during execution: "
"""How the package begins what a call gives that cannot be made."""
MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"
"""What the user says when functions that were held back are offered, as the package has it."""
LAST_WORD = "Done."
"""What ends a turn in a script."""
LISTED_CASES = 8


class BfclSettings(BaseModel):
    """What ``args`` of the environment may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    calls: int = Field(default=20, ge=1, le=64)
    """Messages with calls in a turn of the user at most; one more, and the case is failed. 20 as the package has it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the package.

    Attributes:
        entry: as its file has it; the simulators read ``id``, ``initial_config`` and ``involved_classes``.
        asked: what the user says, turn by turn.
        offered: the functions that may be called from a turn on, by its number; always of turn 0.
        answers: the package's own calls, turn by turn.
        split: that it belongs to.
    """

    entry: Mapping[str, Any]
    asked: tuple[tuple[Turn, ...], ...]
    offered: Mapping[int, tuple[Tool, ...]]
    answers: tuple[tuple[str, ...], ...]
    split: TaskSplit

    @property
    def name(self) -> str:
        """As the package numbers it, ``multi_turn_base_17``."""
        return str(self.entry["id"])


class BfclEnvironment:
    """Satisfies :class:`base.Environment`: the cases of a category, each in one split whatever the category.

    Training goes through all cases in an order keyed by seed and epoch; a held-out case is asked once.

    Args:
        category: one of :data:`CATEGORIES`.
        args: see :class:`BfclSettings`.
        seconds: of a processor, that a call may take.

    Raises:
        UserError: the package is not there, has no such category, or cannot be read.
    """

    def __init__(self, category: str, args: Mapping[str, Any], *, seconds: float) -> None:
        self.name = f"bfcl:{category}"
        if category not in CATEGORIES:
            raise UserError(
                f"bfcl has no cases of several turns called {category!r}; there are {', '.join(CATEGORIES)}"
            )
        try:
            self._settings = BfclSettings.model_validate(dict(args))
        except ValidationError as error:
            why = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise UserError(f"`args` of {self.name}: {why}; there is `calls`, from 1 to 64") from error
        self._cases = read_cases(category)
        self._simulators, self._seconds = simulators(), seconds
        self._simulators.begin()
        self._unfit: dict[str, int] = {}

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> BfclEpisode:
        """See :class:`base.Environment`; an easy form there is none.

        Raises:
            UserError: no such split, or it has fewer cases than are asked for.
        """
        refuse_unknown_split(self.name, split)
        cases = [case for case in self._cases if case.split == split and case.name not in self._unfit]
        place = place_in_turn(f"{self.name}/{seed}", split, index, len(cases))
        if place is None:
            wanted = f"evaluate.{split}_prompts" if split != "train" else "prompts"
            unfit = f", {len(self._unfit)} of all being longer than the context of the student" if self._unfit else ""
            raise UserError(
                f"{self.name} has {len(cases)} cases for {split}{unfit}, and case {index + 1} is asked for; lower "
                f"`{wanted}` to {len(cases)}"
            )
        return BfclEpisode(cases[place], self._simulators, calls=self._settings.calls, seconds=self._seconds)

    def fit(self, tokens: Callable[[Sequence[Turn], Sequence[Tool]], int], room: int) -> None:
        """Leave out the cases whose first messages and tools have more than ``room`` tokens; see :attr:`left_out`."""
        sizes = {case.name: tokens(case.asked[0], case.offered[0]) for case in self._cases}
        self._unfit = {name: size for name, size in sizes.items() if size > room}
        self._room = room

    @property
    def left_out(self) -> list[str]:
        """In a sentence, how many cases :meth:`fit` left out, and which."""
        if not self._unfit:
            return []
        listed = ", ".join(f"{name} ({size})" for name, size in list(self._unfit.items())[:LISTED_CASES])
        more = len(self._unfit) - LISTED_CASES
        return [
            f"{len(self._unfit)} of {len(self._cases)} cases of {self.name} are left out, because their tools and "
            f"first message have more tokens than the {self._room} that the student's context leaves them: {listed}"
            f"{f' and {more} more' if more > 0 else ''}"
        ]


class BfclEpisode:
    """Satisfies :class:`base.Episode`: a case under way.

    Args:
        calls: messages with calls in a turn of the user at most.
        seconds: of a processor, that the simulators may take for an answer.
    """

    def __init__(self, case: Case, simulators: Simulators, *, calls: int, seconds: float) -> None:
        self._case, self._simulators, self._limit, self._seconds = case, simulators, calls, seconds
        self.messages: Sequence[Turn] = case.asked[0]
        self.tools: Sequence[Tool] = case.offered[0]
        last = case.offered[max(case.offered)]
        self.later_tools: Sequence[Tool] = [tool for tool in last if tool not in self.tools]
        self.script = [text for turn in case.answers for text in (*turn, LAST_WORD)]
        self._spoken: list[Turn] = list(case.asked[0])
        self._made: list[list[list[str]]] = [[]]
        self._messages_with_calls = 0

    @property
    def name(self) -> str:
        """Of the case."""
        return self._case.name

    async def step(self, message: Turn) -> Step:
        """Run the calls of a message; without one the user goes on, or the case is judged.

        Raises:
            RunError: the simulators broke, or took too long.
        """
        self._spoken.append(message)
        calls = message.get("tool_calls") or ()
        answer = await self._run(calls) if calls else await self._go_on()
        self._spoken += answer.messages
        return Step(tuple(self._spoken), restart=True, tools=answer.tools) if answer.restart else answer

    async def _run(self, calls: Sequence[Mapping[str, Any]]) -> Step:
        self._messages_with_calls += 1
        if self._messages_with_calls > self._limit:
            return Step(done=True, reward=0.0)
        written = [written_call(call, self.tools) for call in calls]
        sound = [each.text for each in written if not each.why]
        results = iter(await self._results(sound))
        messages, failed = list[Turn](), False
        for each in written:
            content = f"{ERROR}{each.why}" if each.why else next(results)
            if content.startswith(FAILED_CALL):
                content = f"{ERROR}{content.removeprefix(FAILED_CALL)}"
            failed |= content.startswith((ERROR, '{"error"'))
            messages.append({"role": "tool", "name": each.name, "content": content})
        return Step(tuple(messages), failed=failed)

    async def _results(self, calls: list[str]) -> list[str]:
        """What calls give; from then on they have been made."""
        if not calls:
            return []
        *earlier, turn = self._made
        made = [*earlier, [*turn, calls]]
        reply = await self._simulators.ask(self._question(made), seconds=self._seconds)
        self._made = made
        return list(reply["results"])

    async def _go_on(self) -> Step:
        case, place = self._case, len(self._made)
        if place == len(case.asked):
            question = {**self._question(self._made), "answers": case.answers}
            reply = await self._simulators.ask(question, seconds=self._seconds)
            return Step(done=True, reward=float(not reply["error"]))
        self._made.append([])
        self._messages_with_calls = 0
        if place in case.offered:
            self.tools = case.offered[place]
            return Step(case.asked[place], restart=True, tools=case.offered[place])
        return Step(case.asked[place])

    def _question(self, made: list[list[list[str]]]) -> dict[str, Any]:
        entry = {key: self._case.entry[key] for key in ("id", "initial_config", "involved_classes")}
        return {"case": entry, "turns": made}


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as the package takes it, ``cd(folder='temp')``; or ``why`` it is none."""

    name: str
    text: str = ""
    why: str = ""


def written_call(call: Mapping[str, Any], tools: Sequence[Tool]) -> WrittenCall:
    """A model's call as text of Python, whose values are literals: the package evaluates it.

    Example:
        ``{"function": {"name": "cd", "arguments": {"folder": "temp"}}}`` is ``cd(folder='temp')``.
    """
    function = call.get("function", call)
    name, arguments = str(function.get("name")), function.get("arguments")
    if name not in [tool.name for tool in tools]:
        return WrittenCall(name, why=f"there is no tool {name!r}; there are {', '.join(tool.name for tool in tools)}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return WrittenCall(name, why="the arguments are no JSON object")
    if not isinstance(arguments, Mapping):
        return WrittenCall(name, why="the arguments must be an object")
    for key in arguments:
        if not str(key).isidentifier() or keyword.iskeyword(str(key)):
            return WrittenCall(name, why=f"no parameter is called {key!r}")
    return WrittenCall(name, f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})")


# ---- the package's files


def data_folder() -> Path:
    """Where the package keeps its cases.

    Raises:
        UserError: it is not installed, or what its simulators import is not.
    """
    specs = {name: importlib.util.find_spec(name) for name in ("bfcl_eval", "mpmath")}
    for name, spec in specs.items():
        if spec is None or spec.origin is None:
            raise UserError(f"environments of bfcl need the package {name}; install it: {INSTALL}")
    package = specs["bfcl_eval"]
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data"


@functools.cache
def read_cases(category: str) -> tuple[Case, ...]:
    """The cases of a category, in the package's order.

    Raises:
        UserError: the package is not there, or is another than is known here.
    """
    folder = data_folder()
    try:
        entries = _lines(folder / CASES.format(category))
        answers = {row["id"]: row["ground_truth"] for row in _lines(folder / ANSWERS.format(category))}
        base = {_number(entry["id"]): _words_of(entry) for entry in _lines(folder / CASES.format(CATEGORIES[0]))}
        functions = {name: _lines(folder / FUNCTIONS.format(file)) for name, file in FILES.items()}
        return tuple(_case(entry, answers[entry["id"]], base[_number(entry["id"])], functions) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the cases {category!r} of bfcl-eval in {folder} cannot be read ({type(error).__name__}: {error}); "
            f"install 2026.3.23: {INSTALL}==2026.3.23"
        ) from error


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _number(name: str) -> str:
    return name.rsplit("_", 1)[1]


def _words_of(entry: Mapping[str, Any]) -> str:
    """What decides the split. The categories vary the same cases, so it is what the first category's user says."""
    return "\n".join(str(message["content"]) for turn in entry["question"] for message in turn)


def _case(
    entry: Mapping[str, Any], answers: Sequence[Sequence[str]], words: str, functions: Mapping[str, Sequence[Any]]
) -> Case:
    tools = {doc["name"]: _tool(doc) for name in entry["involved_classes"] for doc in functions[name]}
    held_back = {int(turn): list(names) for turn, names in entry.get("missed_function", {}).items()}
    now = [tool for name, tool in tools.items() if not any(name in names for names in held_back.values())]
    offered = {0: tuple(now)}
    for turn in sorted(held_back):
        now += [tools[name] for name in held_back[turn]]
        offered[turn] = tuple(now)
    asked = [tuple(turn) or ({"role": "user", "content": MORE_FUNCTIONS},) for turn in entry["question"]]
    return Case(entry, tuple(asked), offered, tuple(map(tuple, answers)), split_of(words))


def _tool(doc: Mapping[str, Any]) -> Tool:
    parameters = _schema(doc["parameters"])
    return Tool(str(doc["name"]), str(doc["description"]), _run_by_the_package, {"properties": {}, **parameters})


def _schema(described: Any) -> Any:
    """A JSON schema of what the package describes in words of its own."""
    if isinstance(described, list):
        return [_schema(each) for each in described]
    if not isinstance(described, Mapping):
        return described
    read = {key: _schema(value) for key, value in described.items()}
    if isinstance(described.get("type"), str):
        read["type"] = JSON_TYPES.get(described["type"], described["type"])
    return read


def _run_by_the_package(**arguments: Any) -> Any:
    raise RunError("this tool is run by the package bfcl-eval")


# ---- the process of the simulators


class Simulators:
    """The process of :mod:`bfcl_simulators`, begun when it is first needed, and again where it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mopd-bfcl-")
        self._begun = 0
        atexit.register(self._end)

    def begin(self) -> str:
        """The socket on which it serves.

        Raises:
            UserError: it does not begin.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return self._socket
            self._begun += 1
            self._socket = f"{self._folder.name}/{self._begun}"
            command = [sys.executable, "-P", str(bfcl_simulators.__file__), self._socket]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() != b"ready":
                _, why = self._process.communicate()
                last = why.decode(errors="replace").strip().rpartition("\n")[2]
                raise UserError(f"the simulators of bfcl-eval do not begin ({last}); install them: {INSTALL}")
            return self._socket

    async def ask(self, question: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        """The reply to a question; see :mod:`bfcl_simulators`.

        Raises:
            RunError: there is none within the limits of time and memory, or the package broke.
        """
        path = await asyncio.to_thread(self.begin)
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(json.dumps({**question, "seconds": seconds}).encode() + b"\n")
            await writer.drain()
            reply = await reader.read()
        finally:
            writer.close()
        if not reply:
            raise RunError(f"the simulators of bfcl-eval gave up: a call took more than {seconds:g} s, or the memory")
        read = json.loads(reply)
        if "broken" in read:
            raise RunError(f"the simulators of bfcl-eval broke: {read['broken']}")
        return read

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@functools.cache
def simulators() -> Simulators:
    """Those of this process, for every domain of it."""
    return Simulators()

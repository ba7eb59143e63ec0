"""A tool is a typed function: what a model is told of it follows from its signature and its docstring.

A call that does not fit, or a function that raises, becomes an error message that the model reads; it ends nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from mopd.distill.types import UserError

ERROR = "error: "
"""How an observation begins that tells of a call which failed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may call.

    Attributes:
        name: by which it is called.
        description: what it does, in a sentence.
        function: takes its arguments by name; may be a coroutine function. What it returns is shown as text: a string
            as it is, all else as JSON.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str
    function: Callable[..., Any]
    parameters: Mapping[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates are given it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @property
    def takes_text(self) -> bool:
        """Whether it has one argument, which is text: a call may then be written without quotes."""
        return list(self.parameters["properties"].values()) == [{"type": "string"}]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call: the message that the model reads, and whether it tells of an error."""

    message: dict[str, Any]
    failed: bool


def tool(function: Callable[..., Any]) -> Tool:
    """A typed function as a tool: its name, the first paragraph of its docstring, the schema of its parameters.

    Raises:
        UserError: a parameter has no type, one that JSON has not, or cannot be given by name.

    Example:
        >>> def add(a: int, b: int = 1) -> int:
        ...     \"\"\"The sum.\"\"\"
        ...     return a + b
        >>> tool(add).parameters["required"]
        ['a']
    """
    name = getattr(function, "__name__", "")
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"tool {name!r} has the parameter {parameter}, which cannot be given by name; name each")
        if parameter.name not in hints:
            raise UserError(
                f"tool {name!r} has the parameter {parameter.name!r} without a type; write one, as `x: int`"
            )
        properties[parameter.name] = _schema(name, parameter.name, hints[parameter.name])
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    description = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return Tool(name, description, function, {"type": "object", "properties": properties, "required": required})


def _schema(name: str, parameter: str, annotation: Any) -> dict[str, Any]:
    if get_origin(annotation) is Literal:
        return {"enum": list(get_args(annotation))}
    try:
        schema = TypeAdapter(annotation).json_schema()
    except Exception as error:
        raise UserError(
            f"tool {name!r} has the parameter {parameter!r} of {annotation}, which JSON has not "
            f"({type(error).__name__}); take text, numbers, truth values, lists or mappings of them"
        ) from error
    return schema


async def run_calls(tools: Sequence[Tool], calls: Sequence[Mapping[str, Any]]) -> AsyncIterator[Result]:
    """Run calls one after the other, in order; each yields the message that the model reads."""
    for call in calls:
        yield await run_call(tools, call)


async def run_call(tools: Sequence[Tool], call: Mapping[str, Any]) -> Result:
    """Run one call. Whatever is wrong with it, or goes wrong in it, becomes an error message."""
    function = call.get("function", call)
    name = str(function.get("name"))
    chosen = next((each for each in tools if each.name == name), None)
    if chosen is None:
        return _error(name, f"there is no tool {name!r}; there are {', '.join(each.name for each in tools) or 'none'}")
    try:
        arguments = checked_arguments(chosen, function.get("arguments"))
        value = chosen.function(**arguments)
        if inspect.isawaitable(value):
            value = await value
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        return _error(name, str(error) or type(error).__name__)
    return Result({"role": "tool", "name": name, "content": text}, text.startswith(ERROR))


def checked_arguments(tool: Tool, arguments: object) -> dict[str, Any]:
    """The arguments of a call as the function takes them.

    Raises:
        ValueError: one is missing, unknown, or of another type; the message is what the model reads.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise ValueError("the arguments are no JSON object") from None
    if not isinstance(arguments, Mapping):
        raise ValueError("the arguments must be an object")
    properties, hints = tool.parameters["properties"], typing.get_type_hints(tool.function)
    if unknown := [name for name in arguments if name not in properties]:
        raise ValueError(f"no parameter is called {unknown[0]!r}; there are {', '.join(properties)}")
    if missing := [name for name in tool.parameters["required"] if name not in arguments]:
        raise ValueError(f"{missing[0]!r} is missing")
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value, strict=not isinstance(value, int | list))
        except ValidationError as error:
            raise ValueError(f"{name!r}: {error.errors()[0]['msg']}") from None
    return checked


def _error(name: str, why: str) -> Result:
    return Result({"role": "tool", "name": name, "content": f"{ERROR}{why}"}, True)

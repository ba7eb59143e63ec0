"""The types of a recipe's fields: bounded numbers, names, and shipped names or `./file.py:NAME`; and its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mopd.distill.recipe.plugins import PLUGIN_PATTERN, is_plugin

LONGEST_NAME = 100
"""Letters: a name becomes a part of folders' names, of which file systems take 255 bytes."""
MOST = 1_000_000_000
"""Of anything that is counted; what a smaller number asks of the machine, the plan says."""

Positive: TypeAlias = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
"""A count, where 0 means that there is none of it."""
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A signed number of 64 bits, which is what the generators of random numbers take."""
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=LONGEST_NAME)]
"""Of a domain, a teacher or a stage: they become folders, metric names and keys of dotted paths."""


def refusal(message: str) -> PydanticCustomError:
    """An error of a recipe in our own words: a predicate that follows the path of what is refused."""
    return PydanticCustomError("refusal", "{message}", {"message": message})


class Within:
    """Marks a number that must lie from ``low`` to ``high``, for a reason that the refusal gives.

    Args:
        why: what happens outside, as a message has it in brackets.
        besides: numbers outside that have a meaning of their own, such as 0 for off.
    """

    def __init__(self, low: float, high: float, why: str, *, besides: tuple[float, ...] = ()) -> None:
        self.low, self.high, self.why, self.besides = low, high, why, besides

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A number that lies in the range."""
        return core_schema.no_info_after_validator_function(self._inside, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the bounds."""
        return handler(schema) | {"minimum": min([self.low, *self.besides]), "maximum": max([self.high, *self.besides])}

    def _inside(self, value: float) -> float:
        if self.low <= value <= self.high or value in self.besides:
            return value
        needed = (
            f"{''.join(f'{number:g}, or ' for number in self.besides)}from {self.low:g} to {self.high:g} ({self.why})"
        )
        raise PydanticCustomError("outside", "{needed}", {"needed": needed})


LearningRate: TypeAlias = Annotated[
    float, Within(1e-9, 100, "float32 weights are rounded to larger steps than less, and leave their range with more")
]
Clip: TypeAlias = Annotated[
    float, Within(1e-6, 1e12, "less leaves nothing of a gradient, no gradient has more", besides=(0,))
]
AdapterScale: TypeAlias = Annotated[
    float,
    Within(1e-3, 1e6, "less moves no weight beyond its rounding, more leaves the range of float32 in a few steps"),
]
Bound: TypeAlias = Annotated[float, Within(1e-6, 1e12, "less leaves nothing, no loss has more")]
Epsilon: TypeAlias = Annotated[
    float, Within(1e-15, 0.1, "less divides 0 by 0 in float32, more leaves nothing of the gradient")
]
BiasRate: TypeAlias = Annotated[
    float, Within(1e-9, 1, "scores of routers are about 1: less is lost beside them, more drowns them", besides=(0,))
]
Temperature: TypeAlias = Annotated[
    float, Within(0.01, 100, "below, rounding errors of logits choose the token, above, all tokens are alike")
]
Strength: TypeAlias = Annotated[float, Within(1e-6, 100, "1 is the sum of the teachers' changes")]
Seconds: TypeAlias = Annotated[float, Within(0.001, 1e7, "of seconds, timers take up to 115 days")]
Pause: TypeAlias = Annotated[float, Within(0, 1e7, "of seconds, timers take up to 115 days")]
BESIDE_OTHERS = "beyond, one float32 gradient is lost beside the other"
Pull: TypeAlias = Annotated[float, Within(1e-6, 1e6, BESIDE_OTHERS)]
"""A weight or bound that multiplies losses or gradients."""
SMALLEST_PART = 0.0001
"""Of a resource, as Ray counts it."""
PartOfGPU: TypeAlias = Annotated[
    float, Within(SMALLEST_PART, 1, "Ray counts ten-thousandths, and at most one a process")
]

LARGEST_IN_CONFIG = 1e12
"""Of a number in a model's configuration; the largest in use are bases of rotary positions, below 1e9."""


def _refuse_absurd_numbers(mapping: dict[str, Any]) -> dict[str, Any]:
    for path, number in _numbers_in(mapping):
        if not abs(number) <= LARGEST_IN_CONFIG:
            shown = number if isinstance(number, float) else f"a number of {len(str(abs(number)))} digits"
            raise refusal(f"has `{path}` {shown}; a model's numbers are finite, and {LARGEST_IN_CONFIG:g} at most")
    return mapping


def _numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested mappings and lists, with its path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers_in(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _numbers_in(entry, f"{path}[{place}]")
    elif isinstance(value, int | float):
        yield path, value


FiniteMapping: TypeAlias = Annotated[dict[str, Any], AfterValidator(_refuse_absurd_numbers)]
"""Keys of a model's configuration: whatever a family reads, but no number that no model has."""


class ShippedOrPlugin:
    """Marks a text field that takes one of the shipped names, or ``./file.py:NAME`` of a user's own.

    Args:
        prefixes: of names that are known elsewhere, for example ``verifiers:`` for ``verifiers:NAME``.
    """

    def __init__(self, *shipped: str, prefixes: tuple[str, ...] = ()) -> None:
        self.shipped, self.prefixes = shipped, prefixes

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text that is on offer."""
        return core_schema.no_info_after_validator_function(self._on_offer, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the shipped names complete."""
        reference = {"type": "string", "pattern": PLUGIN_PATTERN}
        elsewhere: list[dict[str, Any]] = [{"type": "string", "pattern": f"^{prefix}."} for prefix in self.prefixes]
        elsewhere += [{"type": "object", "required": [prefix.removesuffix(":")]} for prefix in self.prefixes]
        return {"anyOf": [{"enum": list(self.shipped)}, reference, *elsewhere]} if self.shipped else reference

    def _on_offer(self, name: str) -> str:
        elsewhere = any(name.startswith(prefix) and name != prefix for prefix in self.prefixes)
        if name not in self.shipped and not is_plugin(name) and not elsewhere:
            raise PydanticCustomError("unknown_name", "is not on offer", {"shipped": self.shipped})
        return name


PluginReference: TypeAlias = Annotated[str, ShippedOrPlugin()]
"""``./file.py:NAME``: an object of a user's own file."""


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

"""The types of a recipe's fields: bounded numbers, names, and shipped names or `./file.py:NAME`; and its refusals."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mopd.distill.recipe.plugins import PLUGIN_PATTERN, is_plugin

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A signed number of 64 bits, which is what the generators of random numbers take."""
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a domain, a teacher or a stage: they become folders, metric names and keys of dotted paths."""


def refusal(message: str) -> PydanticCustomError:
    """An error of a recipe in our own words: a predicate that follows the path of what is refused."""
    return PydanticCustomError("refusal", "{message}", {"message": message})


class ShippedOrPlugin:
    """Marks a text field that takes one of the shipped names, or ``./file.py:NAME`` of a user's own."""

    def __init__(self, *shipped: str) -> None:
        self.shipped = shipped

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text that is on offer."""
        return core_schema.no_info_after_validator_function(self._on_offer, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the shipped names complete."""
        reference = {"type": "string", "pattern": PLUGIN_PATTERN}
        return {"anyOf": [{"enum": list(self.shipped)}, reference]} if self.shipped else reference

    def _on_offer(self, name: str) -> str:
        if name not in self.shipped and not is_plugin(name):
            raise PydanticCustomError("unknown_name", "is not on offer", {"shipped": self.shipped})
        return name


PluginReference: TypeAlias = Annotated[str, ShippedOrPlugin()]
"""``./file.py:NAME``: an object of a user's own file."""


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

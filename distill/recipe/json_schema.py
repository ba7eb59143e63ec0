"""The JSON Schema of a recipe's file, for an editor's completion and help."""

from __future__ import annotations

from typing import Any

from mopd.distill.recipe.schema.recipe import Recipe
from mopd.distill.recipe.study import StudySettings


def editor_schema() -> dict[str, Any]:
    """JSON Schema of the file of a recipe or a study.

    Nothing is required in it, and ``null`` may stand anywhere: a file that ``extends`` another, and a method of a
    study, leave out what is given elsewhere and remove what they don't want. Whether a recipe is whole is for
    :func:`distill.recipe.study.load` to say.
    """
    schema, study = _any_of(Recipe.model_json_schema(by_alias=True)), StudySettings.model_json_schema()
    domain, environment = (schema["$defs"][name]["properties"] for name in ("DomainRecipe", "EnvironmentSource"))
    domain |= {name: value for name, value in environment.items() if name not in domain}  # which may stand beside it
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
        for name, value in section.get("properties", {}).items():
            for pattern, entries in value.get("patternProperties", {}).items():
                value["patternProperties"][pattern] = _or_null(entries)
            section["properties"][name] = _or_null(value)
    methods = study["properties"]["methods"]["patternProperties"]
    methods |= dict.fromkeys(methods, _or_null({"$ref": "#"}))
    schema["properties"] |= study["properties"]
    schema["properties"]["extends"] = {"type": "string", "description": "a shipped recipe's name, or a relative path"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _any_of(node: Any) -> Any:
    """The schema with every ``oneOf`` as ``anyOf``: a mapping that leaves its name out may fit several members."""
    if isinstance(node, dict):
        return {"anyOf" if key == "oneOf" else key: _any_of(value) for key, value in node.items()}
    return [_any_of(entry) for entry in node] if isinstance(node, list) else node


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [value, {"type": "null"}]}

"""docs/families.md on every causal family of transformers: it names all, and says of a sample what is found here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families_kit import BEGIN, END, causal_families, outcome
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mopd.distill.models.families import FAMILIES

PAGE = Path(__file__).parents[4] / "docs" / "families.md"
SAMPLE = ("aria_text", "bart", "bloom", "gemma3", "gemma4_text", "gpt2", "mamba", "qwen3_moe")
"""A part for images, positions over padding, no positions, attention that differs by layer, no heads, a mixture."""


def written() -> dict[str, str]:
    """What the page says of each family."""
    part = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    right, _, rest = part.partition("| refused |")
    refused, _, not_made = rest.partition("| not made tiny |")
    right = right.partition("**Right:**")[2]
    return {
        **dict.fromkeys(re.findall(r"`([^`]+)`", right), "right"),
        **dict.fromkeys(re.findall(r"^\| `([^`]+)` \|", refused, re.MULTILINE), "refused"),
        **dict.fromkeys(re.findall(r"^\| `([^`]+)` \|", not_made, re.MULTILINE), "not made"),
    }


def test_the_page_names_every_causal_family() -> None:
    assert sorted(written()) == causal_families()


def test_what_the_page_calls_refused_is_what_a_check_refuses() -> None:
    refused = {family for family, kind in written().items() if kind == "refused"}
    unsampled = {name for name, row in FAMILIES.items() if not row.sampled and name in CONFIG_MAPPING}
    assert refused == unsampled & {*causal_families()}


@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_is_as_the_page_says(family: str) -> None:
    found = outcome(family)
    assert found.kind == written()[family], found

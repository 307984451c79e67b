"""The look's promises that a machine can hold: contrast, and nothing that the security policy forbids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (ROOT / "static" / "css" / "tokens.css").read_text()
TEXT = [
    ("ink", "paper"), ("ink", "surface"), ("ink", "sunken"), ("muted", "paper"), ("muted", "surface"),
    ("muted", "sunken"),
    ("accent", "paper"), ("accent", "surface"), ("accent", "accent-soft"), ("on-accent", "accent"),
    ("on-accent", "accent-hover"), ("good", "good-soft"), ("warn", "warn-soft"), ("bad", "bad-soft"),
    ("busy", "busy-soft"), ("idle", "idle-soft"), ("bad", "surface"), ("warn", "sunken"), ("bad", "sunken"),
    ("ink", "good-soft"), ("ink", "warn-soft"), ("ink", "bad-soft"), ("ink", "busy-soft"),
]  # fmt: skip
EDGES = [("line-strong", "surface"), ("line-strong", "paper"), ("focus", "paper"), ("focus", "surface")]


def colours(theme: str) -> dict[str, str]:
    light, _, dark = TOKENS.partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))
    return found | (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", dark)) if theme == "dark" else {})


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme: str) -> None:
    palette = colours(theme)
    short = [pair for pair in TEXT if contrast(palette[pair[0]], palette[pair[1]]) < 4.5]
    short += [pair for pair in EDGES if contrast(palette[pair[0]], palette[pair[1]]) < 3]
    assert short == []


def test_stylesheets_stay_few_and_short() -> None:
    sheets = sorted((ROOT / "static" / "css").glob("*.css"))
    assert [sheet.name for sheet in sheets] == ["base.css", "components.css", "controls.css", "tokens.css"]
    assert [sheet.name for sheet in sheets if len(sheet.read_text().splitlines()) > 400] == []


def test_templates_have_no_inline_style_or_script() -> None:
    forbidden = re.compile(
        r"\sstyle=|<style|<script(?![^>]*(\bsrc=|application/json))|\son[a-z]+=|javascript:", re.IGNORECASE
    )
    pages = [page for page in (ROOT / "templates").rglob("*.html") if "admin" not in page.parts]
    assert [str(page.relative_to(ROOT)) for page in pages if forbidden.search(page.read_text())] == []

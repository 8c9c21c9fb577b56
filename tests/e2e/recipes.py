"""What the pages of docs/ give to copy: tests run these very texts."""

from __future__ import annotations

import re

from .servers import ROOT


def block(page: str, language: str, word: str) -> str:
    """The only code block of that language that contains the word."""
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
    (only,) = (each for each in found if word in each)
    return str(only)

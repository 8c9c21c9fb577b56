"""Writes the element's English texts from those of the widgets: ``python -m tests.javascript_texts``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import django
from django.utils.translation import override

PAGE = (
    Path(__file__).parents[1]
    / "src/django_async_upload/static/django_async_upload/widget/english.js"
)
HEAD = """/**
 * Every text that a user meets in the browser. Words in braces are put in by the element: numbers, sizes, speeds
 * and times come formatted in the language of the document. No text has a plural, so none needs plural rules.
 *
 * Made from `TEXTS` of widgets.py by `make messages`: change that, not this.
 */
"""


def page() -> str:
    from django_async_upload.widgets import TEXTS

    with override(None):
        lines = [
            f"  {key}: {json.dumps(str(text), ensure_ascii=False)},\n"
            for key, text in TEXTS.items()
        ]
    return f"{HEAD}export const ENGLISH = Object.freeze({{\n{''.join(lines)}}});\n"


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    PAGE.write_text(page())

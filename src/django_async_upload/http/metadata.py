"""``Upload-Metadata``, the header of tus 1.0: keys, each with a text in base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final

from ..exceptions import MetadataInvalid

_KEY: Final = re.compile(r"[\x21-\x2b\x2d-\x7e]+")


def parse_metadata(header: str) -> dict[str, str]:
    """The texts by key; "" for a key without a value.

    Raises :class:`MetadataInvalid` where a key is empty, is not ASCII or comes twice, and where a value is not UTF-8
    in base64.
    """
    texts: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, encoded = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in texts:
            raise MetadataInvalid(reason=f"the key {key!r} of Upload-Metadata is not valid")
        try:
            texts[key] = base64.b64decode(encoded, validate=True).decode()
        except ValueError as error:  # of base64, or of UTF-8
            raise MetadataInvalid(reason=f"the value of {key!r} in Upload-Metadata") from error
    return texts


def write_metadata(texts: Mapping[str, str]) -> str:
    """The header for these texts, without those whose keys it cannot have."""
    return ",".join(
        f"{key} {base64.b64encode(text.encode()).decode()}".strip()
        for key, text in texts.items()
        if _KEY.fullmatch(key)
    )

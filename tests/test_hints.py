"""Hints reach the holder of an upload, and no other upload."""

from __future__ import annotations

import uuid

from django_async_upload.engine.hints import LocalHints
from django_async_upload.exceptions import TakenOver, UploadError


def test_a_holder_hears_of_its_own_upload_until_it_lets_go() -> None:
    hints = LocalHints()
    one, other = uuid.uuid4(), uuid.uuid4()
    heard: list[UploadError] = []
    older: list[UploadError] = []
    reason = TakenOver()
    hints.register(one, older.append)
    hints.register(one, heard.append)
    hints.unregister(one, older.append)  # the older holder leaves; the newer one stays
    hints.tell_holder(other, reason)
    assert not heard
    hints.tell_holder(one, reason)
    assert (heard, older) == ([reason], [])
    hints.unregister(one, heard.append)
    hints.tell_holder(one, reason)
    assert heard == [reason]

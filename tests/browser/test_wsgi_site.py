"""The example on gunicorn's sync workers, with an upload process beside it, as docs/how-to/wsgi-site.md has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from ..e2e.wsgi import find_nginx
from .example import Example, ExampleOnWsgi, sha256
from .screen import LONG, row

# The same tests as on one ASGI server; ``kind`` below says where.
from .test_documents import (  # noqa: F401
    test_a_file_is_replaced_and_a_cover_cleared,
    test_a_form_waits_and_one_with_errors_keeps_what_was_uploaded,
    test_the_admin_and_its_inline_upload_too,
    test_the_admin_shows_an_upload_as_it_goes_on_and_cancels_it,
    title,
)
from .test_uploads import (  # noqa: F401
    page,
    test_a_login_that_expired_is_renewed_in_another_tab,
    test_a_server_that_is_killed_and_comes_back_gets_the_rest,
)


@pytest.fixture(scope="session", params=["wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    if find_nginx() is None:
        pytest.skip("needs nginx")
    return str(request.param)


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_an_upload_goes_on_when_the_upload_process_is_started_again(
    visit: Callable[..., Any],
    page: Any,  # noqa: F811
    example: Example,
    proxy: ChaosProxy,
    middling: Path,
    way: str,
) -> None:
    assert isinstance(example, ExampleOnWsgi)
    uploads = example.wsgi.uploads
    if way == "kill":
        uploads.kill()
    else:
        uploads.terminate()
    row(page, middling.name, "offline")
    before = len(proxy.sent)
    pages = visit().new_page()
    pages.goto("/documents/")  # gunicorn serves on
    pages.get_by_role("heading").first.wait_for()
    proxy.rate = None
    uploads.start()
    row(page, middling.name, "completed", seconds=LONG)
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert min(each.offset for each in proxy.sent[before:]) > 0, "what was durable came again"

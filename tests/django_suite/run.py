"""Run Django's own tests once, and write down what became of each that did not pass. A process of its own.

``python run.py TESTS REPORT {plain,app} PROCESSES LABELS...``; TESTS is the folder ``tests`` of the installed Django's
sdist. ``app``: with this app, its middleware and its widgets in every project that the tests make.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from typing import Any

MIDDLEWARE = "django_async_upload.middleware.UploadMiddleware"


def main(tests: str, report: str, way: str, processes: str, *labels: str) -> int:
    multiprocessing.set_start_method("fork")  # its processes are to have what is put in here
    sys.path.insert(0, tests)
    os.chdir(tests)
    folder = tempfile.mkdtemp(prefix="django-suite-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    os.environ["DJANGO_SETTINGS_MODULE"] = "test_sqlite"

    import runtests
    from django.conf import settings
    from django.test.runner import DiscoverRunner

    if way == "app":
        put_app_into(runtests, settings, folder)

    class Runner(DiscoverRunner):
        """Writes the report."""

        def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> int:
            found = {test.id(): text for test, text in result.failures + result.errors}
            found |= {test.id(): "unexpected success" for test in result.unexpectedSuccesses}
            with open(report, "w") as file:
                json.dump({"ran": result.testsRun, "failed": found}, file)
            return super().suite_result(suite, result, **kwargs)

    sys.modules["suite_runner"] = sys.modules[__name__]
    globals()["Runner"] = Runner
    settings.TEST_RUNNER = "suite_runner.Runner"
    return int(
        runtests.django_tests(
            verbosity=1,
            interactive=False,
            failfast=False,
            keepdb=False,
            reverse=False,
            test_labels=list(labels),
            debug_sql=False,
            parallel=int(processes),
            tags=[],
            exclude_tags=[],
            test_name_patterns=None,
            start_at=None,
            start_after=None,
            pdb=False,
            buffer=False,
            timing=False,
            shuffle=False,
        )
    )


class WithMiddleware:
    """The settings, with the app's middleware: tests that need none set ``MIDDLEWARE`` to an empty list."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        return [*value, MIDDLEWARE] if name == "MIDDLEWARE" and MIDDLEWARE not in value else value


def put_app_into(runtests: Any, settings: Any, folder: str) -> None:
    from django.core.handlers import base

    runtests.ALWAYS_INSTALLED_APPS.append("django_async_upload")
    runtests.ALWAYS_MIDDLEWARE.append(MIDDLEWARE)
    base.settings = WithMiddleware(settings)
    settings.ASYNC_UPLOAD = {"ADMIN_WIDGET": True, "STAGING_ROOT": os.path.join(folder, "staging")}
    setup = runtests.django.setup

    def setup_with_widgets(*args: Any, **kwargs: Any) -> None:
        setup(*args, **kwargs)
        from django import forms

        from django_async_upload.widgets import AsyncClearableFileInput

        forms.FileField.widget = AsyncClearableFileInput

    runtests.django.setup = setup_with_widgets


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))

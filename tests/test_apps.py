"""The Django application: its label, and what it registers when it is ready."""

from __future__ import annotations

import subprocess
import sys

from django.apps import apps
from django.core.checks.registry import registry
from django.db.models.signals import post_delete

from django_async_upload import checks
from django_async_upload.models import UploadSession


def test_the_app_is_known_by_its_label() -> None:
    config = apps.get_app_config("async_upload")
    assert config.name == "django_async_upload"
    assert config.get_model("UploadSession") is UploadSession


def test_checks_and_cleanup_register_themselves() -> None:
    registered = {*registry.registered_checks, *registry.deployment_checks}
    assert {checks.check_settings, checks.check_deployment, checks.check_database} <= registered
    assert post_delete.has_listeners(UploadSession)


def test_importing_the_package_needs_no_django() -> None:
    code = "import django_async_upload, sys; assert 'django' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

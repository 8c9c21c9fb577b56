from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.site"
    label = "site_under_test"

    def ready(self) -> None:
        from . import receivers  # noqa: F401  (they subscribe)

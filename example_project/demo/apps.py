from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "demo"

    def ready(self):
        from . import receivers  # noqa: F401  (they subscribe)

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings


class DemoConfig(AppConfig):
    name = "demo"

    def ready(self):
        import_module(settings.WORK)  # its receivers subscribe

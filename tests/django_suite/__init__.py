"""Django's own tests, with this app in every project of them: ``make django-suite``."""

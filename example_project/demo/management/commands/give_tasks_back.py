"""``manage.py give_tasks_back``: django-tasks-db leaves a task running for ever whose worker has died."""

from datetime import timedelta

from django.core.management.base import BaseCommand
from django.utils import timezone
from django_tasks_db.models import DBTaskResult


class Command(BaseCommand):
    help = "Let tasks be run again that have been running for too long: their worker has died."

    def add_arguments(self, parser):
        parser.add_argument(
            "--after", type=float, default=3600, help="seconds: more than any task takes"
        )

    def handle(self, *, after, **options):
        started = timezone.now() - timedelta(seconds=after)
        lost = DBTaskResult.objects.running().filter(started_at__lt=started)
        self.stdout.write(f"Given back: {lost.update(status='READY')}")

"""The site with Celery: ``DEMO_BROKER`` is the address of a RabbitMQ or Redis, ``DEMO_QUEUE`` the name of the queue."""

import os

from .settings import *  # noqa: F403

WORK = "demo.celery_tasks"

CELERY_BROKER_URL = os.environ.get("DEMO_BROKER", "amqp://guest:guest@127.0.0.1:5672//")
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("DEMO_QUEUE", "demo")
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1  # what a worker has fetched no longer waits by priority
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None

REDIS = CELERY_BROKER_URL.startswith("redis")
if REDIS:
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "priority_steps": list(range(10)),
        # Seconds after which a task of a worker that died is given to another one: more than any task takes.
        "visibility_timeout": int(os.environ.get("DEMO_VISIBILITY_TIMEOUT", "3600")),
        "unacked_restore_throttle": 1,  # look for such tasks every ten seconds
    }
else:
    CELERY_TASK_QUEUE_MAX_PRIORITY = 9
    # RabbitMQ says that it has a message. Without it, what was sent as the connection broke is lost.
    CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}

"""The Redis that the site's processes share, its server's workers and its commands alike."""

import os
from contextlib import suppress

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry


def find_redis():
    """The URL of the Redis at REDIS_URL, or on this machine; None where none answers, or REDIS_URL is empty."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
    with suppress(RedisError, ValueError):  # it is not there, or that is no URL
        limits = {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0)}
        with Redis.from_url(url, **limits) as redis:
            redis.ping()
        return url
    return None

"""Storages that save over what has the same name, as django-storages' S3 does unless told otherwise."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage


class ObjectStorage(Storage):
    """Keeps bytes by key, one bucket for all instances, as ``S3Storage(file_overwrite=True)`` keeps objects."""

    file_overwrite = True
    objects: ClassVar[dict[str, bytes]] = {}

    def __init__(self, *, url: str | None = None) -> None:
        self.base_url = url

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name.replace("\\", "/")

    def _save(self, name: str, content: Any) -> str:
        content.seek(0)
        self.objects[name] = content.read()
        return name

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return ContentFile(self.objects[name], name)

    def exists(self, name: str) -> bool:
        return name in self.objects

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def size(self, name: str) -> int:
        return len(self.objects[name])

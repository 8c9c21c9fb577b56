"""A host's models."""

from __future__ import annotations

from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import InMemoryStorage
from django.db import models


class ReadingStorage(InMemoryStorage):
    """Reads a file as clients of object storages do: seeks and reads, and never asks for chunks."""

    def _save(self, name: str, content: Any) -> str:
        content.seek(0)
        pieces = iter(lambda: content.read(1000), b"")
        whole = ContentFile(b"".join(pieces))
        return str(super()._save(name, whole))  # type: ignore[misc]  # the stubs leave it out


elsewhere = InMemoryStorage()
objects_elsewhere = ReadingStorage()


class Document(models.Model):
    attachment = models.FileField(upload_to="documents/", max_length=200)

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return str(self.attachment.name)


class Copy(models.Model):
    in_memory = models.FileField(storage=elsewhere, blank=True)
    read = models.FileField(storage=objects_elsewhere, blank=True)

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return f"{self.in_memory.name}{self.read.name}"


class Album(models.Model):
    title = models.CharField(max_length=100, unique=True)
    cover = models.ImageField(upload_to="covers/", blank=True)
    notes = models.FileField(upload_to="notes/", blank=True)

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return self.title


class Track(models.Model):
    album = models.ForeignKey(Album, on_delete=models.CASCADE)
    sound = models.FileField(upload_to="tracks/")

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return str(self.sound.name)

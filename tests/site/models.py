"""The host's model, to which finished uploads are bound."""

from django.db import models


class Document(models.Model):
    name = models.CharField(max_length=100, unique=True)
    attachment = models.FileField(upload_to="documents/", max_length=200)

    def __str__(self) -> str:
        return self.name

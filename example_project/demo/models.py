from django.db import models

from django_async_upload.models import UploadSession


class Summary(models.Model):
    """What this site finds out about an uploaded file."""

    upload = models.OneToOneField(UploadSession, on_delete=models.CASCADE, primary_key=True)
    sha256 = models.CharField(max_length=64)
    lines = models.PositiveBigIntegerField()

    class Meta:
        verbose_name_plural = "summaries"

    def __str__(self):
        return f"{self.upload.name}: {self.lines} lines"

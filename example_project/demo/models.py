from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from django_async_upload.models import UploadSession


class Summary(models.Model):
    """What this site finds out about an uploaded file."""

    upload = models.OneToOneField(UploadSession, on_delete=models.CASCADE, primary_key=True)
    event = models.UUIDField(unique=True, null=True)
    sha256 = models.CharField(max_length=64)
    lines = models.PositiveBigIntegerField(null=True, help_text="None where it is no text.")

    class Meta:
        verbose_name_plural = "summaries"

    def __str__(self):
        return f"{self.upload.name}: {self.sha256}"


class Total(models.Model):
    """What the uploads of a user add up to. An upload that were added twice would make it wrong."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True
    )
    files = models.PositiveBigIntegerField(default=0)
    bytes = models.PositiveBigIntegerField(default=0)

    def __str__(self):
        return f"{self.owner}: {self.files} files, {self.bytes} bytes"


class DocumentQuerySet(models.QuerySet):
    def visible_to(self, user):
        return self if user.is_superuser else self.filter(owner=user)


class Document(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    title = models.CharField(_("title"), max_length=100, unique=True)
    file = models.FileField(_("file"), upload_to="documents/")
    cover = models.ImageField(_("cover"), upload_to="covers/", blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DocumentQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = _("document")
        verbose_name_plural = _("documents")

    def __str__(self):
        return self.title

    def get_absolute_url(self):
        return reverse("document", args=[self.pk])


class Photo(models.Model):
    document = models.ForeignKey(Document, on_delete=models.CASCADE, related_name="photos")
    image = models.ImageField(_("picture"), upload_to="photos/")
    caption = models.CharField(_("caption"), max_length=100, blank=True)

    class Meta:
        ordering = ["pk"]
        verbose_name = _("photo")
        verbose_name_plural = _("photos")

    def __str__(self):
        return self.caption or self.image.name.rpartition("/")[2]

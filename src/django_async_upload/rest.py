"""A serializer field for Django REST framework: its input is the receipt of an upload, its value the file."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.files.uploadedfile import UploadedFile
from rest_framework import serializers
from rest_framework.settings import api_settings

from .receipts import MESSAGES, open_receipt


class UploadField(serializers.Field):  # type: ignore[misc]  # untyped
    """Input: the receipt of a completed upload, a string. Validated value: the file. Output: its URL.

    Assign the file to a model's ``FileField``, as a ``ModelSerializer`` does by itself: saving binds the upload.
    ``endpoint`` is the name of the consumer that received it, ``field`` the name in its field token ("": it had none);
    ``max_length`` and ``allow_empty_file`` are as for ``FileField``. A plain file that a multipart request posts under
    the field's name is accepted, too. For several files: ``ListField(child=UploadField())``.

    Error codes: those of ``FileField``, ``receipt_invalid``, ``receipt_expired`` and ``receipt_used``.
    """

    is_used: ClassVar[bool] = False
    """Whether any field was created, for the system checks."""
    default_error_messages = dict(MESSAGES)
    _spectacular_annotation = {
        "field": {"type": "string"}
    }  # drf-spectacular does not know this class

    def __init__(
        self,
        *,
        endpoint: str = "default",
        field: str = "",
        max_length: int | None = None,
        allow_empty_file: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        UploadField.is_used = True
        self.endpoint = endpoint
        self.token_field = field
        self._file = serializers.FileField(max_length=max_length, allow_empty_file=allow_empty_file)

    def to_internal_value(self, data: Any) -> UploadedFile[bytes]:
        try:
            file = data if isinstance(data, UploadedFile) else self._open(data)
            checked: UploadedFile[bytes] = self._file.to_internal_value(file)
        except (
            ValidationError
        ) as error:  # Django's ValidationError for the receipt, raised here or in the middleware
            if error.code in self.error_messages:
                self.fail(error.code)
            raise serializers.ValidationError(error.messages, code=error.code) from error
        return checked

    def get_value(self, dictionary: Any) -> Any:
        value = super().get_value(dictionary)
        if value is serializers.empty:  # a receipt that the middleware refused
            files = getattr(getattr(self.context.get("request"), "_request", None), "_files", None)
            return (getattr(files, "async_uploads", {}).get(self.field_name) or [value])[-1]
        return value

    def _open(self, receipt: object) -> UploadedFile[bytes]:
        request = self.context.get("request")
        if request is None:
            raise ImproperlyConfigured(
                "UploadField needs the request to check the upload's owner: pass context={'request': request} to the "
                "serializer, as REST framework's own views do."
            )
        return open_receipt(
            request._request,
            receipt,
            field=self.token_field,
            endpoint=self.endpoint,
            user=request.user,
        )

    def to_representation(self, value: Any) -> str | None:
        if not value:
            return None
        if not api_settings.UPLOADED_FILES_USE_URL:
            return str(value.name)
        request = self.context.get("request")
        url: str | None = getattr(value, "url", None)
        return url if url is None or request is None else request.build_absolute_uri(url)

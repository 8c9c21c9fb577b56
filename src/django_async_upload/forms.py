"""A form field for several files. For one file, use Django's own fields with a widget of :mod:`.widgets`."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from .binding.linked import RefusedUpload
from .widgets import AsyncMultipleFileInput


class MultipleFileField(forms.FileField):
    """Any number of files, each validated as ``FileField`` does. Its value is a list."""

    widget = AsyncMultipleFileInput

    def clean(self, data: Any, initial: Any = None) -> Any:
        """The list of files. Raises a :class:`ValidationError` with the errors of all of them."""
        files = data if isinstance(data, list | tuple) else [data] if data else []
        if not files:
            return super().clean(None, initial) or []
        if isinstance(self.widget, AsyncMultipleFileInput) and (
            error := self.widget.selection_error(files)
        ):
            raise error
        cleaned, errors = [], []
        for file in files:
            try:
                cleaned.append(super().clean(file))
            except ValidationError as error:
                errors += self._of_file(file, error) if len(files) > 1 else error.error_list
        if errors:
            raise ValidationError(errors)
        return cleaned

    def _of_file(self, file: Any, error: ValidationError) -> list[ValidationError]:
        """The errors of one of several files, with its name."""
        if isinstance(file, RefusedUpload) and not file.called:
            return error.error_list
        return [
            ValidationError(
                "%(name)s: %(message)s",
                code=each.code,
                params={"name": getattr(file, "called", "") or file.name, "message": message},
            )
            for each in error.error_list
            for message in each.messages
        ]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return not self.disabled and bool(data)

from django import forms

from django_async_upload.widgets import AsyncClearableFileInput

from .models import Document

LARGEST = 400 * 1024 * 1024


class DocumentForm(forms.ModelForm):
    class Meta:
        model = Document
        fields = ["title", "file", "cover"]
        widgets = {  # uploads: these lines are all
            "file": AsyncClearableFileInput({"accept": ".pdf,.txt,.bin,image/*"}, max_size=LARGEST),
            "cover": AsyncClearableFileInput,
        }

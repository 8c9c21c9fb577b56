"""Nothing here is about uploads: the setting ``ADMIN_WIDGET`` gives their widget to all file fields."""

from django.contrib import admin

from .models import Document, Photo

admin.site.site_header = admin.site.site_title = "Parcel"


class PhotoInline(admin.TabularInline):
    model = Photo
    extra = 1


@admin.register(Document)
class DocumentAdmin(admin.ModelAdmin):
    list_display = ["title", "owner", "file", "created_at"]
    search_fields = ["title"]
    exclude = ["owner"]
    inlines = [PhotoInline]

    def save_model(self, request, document, form, change):
        document.owner_id = document.owner_id or request.user.pk
        super().save_model(request, document, form, change)

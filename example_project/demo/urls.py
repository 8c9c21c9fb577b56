from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from django.views.i18n import set_language

from django_async_upload.health import healthz

from . import views

urlpatterns = [
    path("", views.upload, name="upload"),
    path("live/", views.live, name="live"),
    path("live/list/", views.live, {"template": "demo/live_list.html"}, name="live-list"),
    path("documents/", views.documents, name="documents"),
    path("documents/new/", views.edit_document, name="document-new"),
    path("documents/<int:pk>/", views.edit_document, name="document"),
    path("documents/<int:pk>/delete/", views.DeleteDocument.as_view(), name="document-delete"),
    path("gallery/", views.gallery, name="gallery"),
    path("uploads/<uuid:pk>/", views.file, name="file"),
    path("media/<path:name>", views.media),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("healthz/", healthz),
    path("metrics/", views.metrics),
    path("language/", login_not_required(set_language), name="set_language"),
    path("admin/", admin.site.urls),
]

from django.urls import path

from django_async_upload.health import healthz

from . import views

urlpatterns = [
    path("healthz/", healthz),
    path("up/", views.up),
    path("ticket/", views.ticket),
    path("login/", views.sign_in),
    path("logout/", views.sign_out),
    path("hold/", views.hold_connection),
    path("drain/", views.drain_all),
    path("undrain/", views.undrain_all),
    path("uploads/", views.uploads),
    path("bind/", views.bind),
    path("form/", views.form),
    path("cancel/", views.cancel),
]

from django.urls import path

from . import views

urlpatterns = [
    path("up/", views.up),
    path("ticket/", views.ticket),
    path("login/", views.sign_in),
    path("logout/", views.sign_out),
    path("drain/", views.drain_all),
    path("undrain/", views.undrain_all),
    path("uploads/", views.uploads),
]

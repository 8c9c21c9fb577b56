"""No pages: the tests talk to the ASGI applications."""

urlpatterns: list[object] = []

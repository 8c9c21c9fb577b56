from django.utils.deprecation import MiddlewareMixin

# A WebSocket to the page's own host is 'self', too. Django 6 has a middleware and a setting for this.
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class ContentSecurityPolicyMiddleware(MiddlewareMixin):
    """Nothing on a page comes from elsewhere, and no script or style is in the page itself."""

    def process_response(self, request, response):
        response.headers.setdefault(
            "Content-Security-Policy", POLICY
        )  # uploads have a stricter one
        return response

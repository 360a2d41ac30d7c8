"""A login of the user's own, as Flower documents it: whoever comes is Ada."""

from __future__ import annotations

from flower.views import BaseHandler
from flower.views.auth import get_next_url


class Login(BaseHandler):  # type: ignore[misc]
    """Set the cookie that Flower looks at."""

    def get(self) -> None:
        """Log in and go on."""
        self.set_secure_cookie("user", "ada@example.com")
        self.redirect(get_next_url(self))

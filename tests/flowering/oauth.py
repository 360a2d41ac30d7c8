"""A login through an OAuth2 server that Flower does not know, in the way that its documentation shows."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlencode

import tornado.auth
from flower.utils.authentication import authenticate
from flower.views import BaseHandler
from flower.views.auth import OAuth2StateMixin, get_next_url
from tornado.web import HTTPError

_SERVER = os.environ.get("FLOWERING_OAUTH_SERVER", "")


class Login(BaseHandler, OAuth2StateMixin, tornado.auth.OAuth2Mixin):  # type: ignore[misc]
    """Send the browser to the server, and take back its code."""

    _OAUTH_AUTHORIZE_URL = f"{_SERVER}/v1/authorize"

    async def get(self) -> None:
        """Begin, or come back with a code."""
        client = self.settings["oauth"]
        if not self.get_argument("code", None):
            self.authorize_redirect(
                redirect_uri=client["redirect_uri"],
                client_id=client["key"],
                response_type="code",
                extra_params={"state": self.set_oauth_state()},
            )
            return
        self.verify_oauth_state()
        form = {
            "grant_type": "authorization_code",
            "code": self.get_argument("code"),
            "client_id": client["key"],
            "client_secret": client["secret"],
            "redirect_uri": client["redirect_uri"],
        }
        given = await self._ask("/v1/token", method="POST", body=urlencode(form))
        who = await self._ask("/v1/userinfo", headers={"Authorization": f"Bearer {given['access_token']}"})
        if not authenticate(self.application.options.auth, who["email"]):
            raise HTTPError(403, "Access denied")
        self.set_secure_cookie("user", who["email"])
        self.redirect(get_next_url(self))

    async def _ask(self, path: str, **options: Any) -> Any:
        answer = await self.get_auth_http_client().fetch(f"{_SERVER}{path}", **options)
        return json.loads(answer.body)

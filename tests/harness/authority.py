"""A small OAuth2 server: the authorization code flow over HTTP, for whoever is said to log in."""

from __future__ import annotations

import json
import secrets
import threading
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, CLIENT_SECRET = "flower", "known to both"
AUTHORIZE, TOKEN, WHO = "/v1/authorize", "/v1/token", "/v1/userinfo"


class Authority:
    """What an OAuth2 server knows: its one client, and the codes and tokens that it has given out.

    Attributes:
        url: where it listens.
        user: the address of whoever logs in next.
        asked: the paths that were asked for, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.user = "ada@example.com"
        self.asked: list[str] = []
        self._codes: dict[str, tuple[str, str]] = {}
        self._tokens: dict[str, str] = {}

    def authorize(self, query: dict[str, str]) -> str | None:
        """Return where the browser goes on with its code; None for what no client of ours would ask."""
        if query.get("client_id") != CLIENT or query.get("response_type") != "code" or not query.get("state"):
            return None
        code = secrets.token_hex()
        self._codes[code] = (self.user, query["redirect_uri"])
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def token(self, form: dict[str, str]) -> dict[str, str] | None:
        """Return a token for a code, which is good for one; None where anything is not as it was promised."""
        user, redirect_uri = self._codes.pop(form.get("code", ""), (None, None))
        promised = {
            "grant_type": "authorization_code",
            "client_id": CLIENT,
            "client_secret": CLIENT_SECRET,
            "redirect_uri": redirect_uri,
        }
        if user is None or any(form.get(name) != value for name, value in promised.items()):
            return None
        token = secrets.token_hex()
        self._tokens[token] = user
        return {"access_token": token, "token_type": "Bearer"}

    def who(self, authorization: str) -> dict[str, Any] | None:
        """Return whose token it is."""
        user = self._tokens.get(authorization.removeprefix("Bearer "))
        return None if user is None else {"email": user, "email_verified": True}


def _handler(authority: Authority) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            authority.asked.append(parts.path)
            if parts.path == AUTHORIZE:
                query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                to = authority.authorize(query)
                if to is not None:
                    self.send_response(HTTPStatus.FOUND)
                    self.send_header("Location", to)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._answer(None)
            elif parts.path == WHO:
                self._answer(authority.who(self.headers.get("Authorization", "")))
            else:
                self._answer(None)

        def do_POST(self) -> None:
            authority.asked.append(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            form = {name: values[-1] for name, values in parse_qs(text).items()}
            self._answer(authority.token(form) if self.path == TOKEN else None)

        def _answer(self, document: dict[str, Any] | None) -> None:
            body = json.dumps(document or {"error": "access_denied"}).encode()
            self.send_response(HTTPStatus.FORBIDDEN if document is None else HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (http.server's name)
            """Say nothing."""

    return Handler


@contextmanager
def authority() -> Iterator[Authority]:
    """Yield an OAuth2 server on a port of its own."""
    made = Authority("")
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(made)) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join(10)

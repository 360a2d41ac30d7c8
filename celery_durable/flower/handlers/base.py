"""What all our handlers share: Flower's own authentication, and errors that say what to do."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower.views import BaseHandler
from tornado.escape import url_escape
from tornado.template import Loader
from tornado.web import Finish, HTTPError

from celery_durable.exceptions import (
    DurableError,
    RunNotFoundError,
    RunStateError,
    SerializationError,
    SignalTokenError,
    StepNotFoundError,
    StepUsageError,
    StoreUnavailableError,
)
from celery_durable.flower.documents import document
from celery_durable.flower.filters import FilterError
from celery_durable.flower.settings import has_authentication, option
from celery_durable.flower.sites import Site, site_of
from celery_durable.flower.words import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parents[1]
TEMPLATES, STATIC = HERE / "templates", HERE / "static"
UNAVAILABLE, REFUSED = 503, 500
# Whatever a run brings along: no script but Flower's and ours is executed. Bars are placed by inline styles.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
_STATUS: dict[type[DurableError], int] = {
    RunNotFoundError: 404,
    StepNotFoundError: 404,
    RunStateError: 409,
    SerializationError: 400,
    StepUsageError: 400,
    SignalTokenError: 403,
    StoreUnavailableError: UNAVAILABLE,
}


@cache
def fragments() -> Loader:
    """Return the templates that are rendered without Flower's frame, off the event loop."""
    return Loader(str(TEMPLATES), autoescape="xhtml_escape", namespace=NAMESPACE)


@cache
def version_of(name: str) -> str:
    """Return what tells this content of a static file from that of another release."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


class Handler(BaseHandler):  # type: ignore[misc]  # Flower ships no types
    """A handler of ours: not there while the tab is off, never cached, clear about what is wrong."""

    site: Site

    def prepare(self) -> None:
        """Refuse everything while there is nothing to show."""
        site = site_of(self.application) if option(self.application, "tab") else None
        if site is None:
            raise HTTPError(404)
        self.site = site
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("X-Frame-Options", "SAMEORIGIN")
        self.set_header("Content-Security-Policy", _POLICY)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Return an argument as text; Postgres has no text with a NUL in it."""
        text: str = super().decode_argument(value, name)
        if "\0" in text:
            raise HTTPError(400, "NUL characters are in no run")
        return text

    @property
    def arguments(self) -> dict[str, list[str]]:
        """The arguments of the URL as text, bytes that are none replaced."""
        return {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.query_arguments.items()
        }

    def argument(self, name: str, default: str = "") -> str:
        """Return one argument of the URL."""
        return (self.arguments.get(name) or [default])[-1]

    def number(self, name: str, default: int | None, *, most: int = 2**63 - 1) -> int | None:
        """Return an argument that is a whole number, cut to `most`."""
        text = self.argument(name)
        if not text:
            return default
        if not text.isdecimal():
            raise FilterError(f"{name}={text!r} is not a number")
        return min(int(text), most)

    @property
    def user(self) -> str:
        """Who is asking, as far as Flower knows."""
        name = self.current_user
        if isinstance(name, str):
            return name
        scheme, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic" and has_authentication(self.application):
            try:
                return base64.b64decode(credentials).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                pass
        return f"anonymous at {self.request.remote_ip}"

    def link(self, name: str, *arguments: str, **query: str) -> str:
        """Return the URL of a route, with Flower's prefix."""
        url: str = self.reverse_url(name, *arguments)
        pairs = "&".join(f"{key}={url_escape(value)}" for key, value in query.items())
        return f"{url}?{pairs}" if pairs else url

    def static(self, name: str) -> str:
        """Return the URL of a static file of ours."""
        return self.link("durable_static", name, v=version_of(name))

    async def in_thread(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Do what takes a while without holding up Flower."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.site.threads, partial(work, *arguments, **named))

    async def operate(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Do what waits for Postgres and the broker without holding up Flower, or the pages."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.site.operating, partial(work, *arguments, **named))

    async def fragment(self, name: str, **values: Any) -> str:
        """Render a part of a page in a thread."""
        template = fragments().load(name)
        rendered: bytes = await self.in_thread(template.generate, link=self.link, **values)
        return rendered.decode()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Leave out of the log what the answer says."""
        if not isinstance(value, (DurableError, FilterError)):
            super().log_exception(typ, value, tb)


def problem_of(error: BaseException | None) -> tuple[int, str, str]:
    """Return status, name and words of what went wrong."""
    if isinstance(error, HTTPError):
        words = (error.log_message or "") % error.args
        return error.status_code, "HTTPError", words or error.reason or str(error.status_code)
    if isinstance(error, FilterError):
        return 400, "FilterError", str(error)
    if isinstance(error, DurableError):
        status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), REFUSED)
        return status, type(error).__name__, str(error)
    return 500, "Error", "Something went wrong; Flower's log says what"


class Page(Handler):
    """A page inside Flower's frame."""

    def show(self, title: str, body: str, *, script: str | None = None, status: int = 200) -> None:
        """Render a page around a body."""
        self.set_status(status)
        page = {
            "title": title,
            "body": body,
            "css": self.static("durable.css"),
            "script": script and self.static(script),
        }
        self.render(str(TEMPLATES / "page.html"), d=page)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what is wrong inside the frame; leave what is not ours to Flower."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if status_code == 401 or not hasattr(self, "site") or isinstance(error, (HTTPError, Finish)):  # noqa: PLR2004
            super().write_error(status_code, **kwargs)
            return
        if not hasattr(self, "_current_user"):
            self.current_user = None
        status, name, words = problem_of(error)
        if status == UNAVAILABLE:
            self.set_header("Retry-After", "5")
        if self.argument("part") == "live":
            self.set_status(status)
            self.finish({"error": {"type": name, "message": words}})
            return
        body = (
            fragments().load("trouble.html").generate(link=self.link, status=status, name=name, words=words)
        )
        self.show("Trouble", body.decode(), script="durable.js", status=status)


class Answer(Handler):
    """An answer for programs and scripts: JSON, errors included."""

    async def answer_large(self, value: Any) -> None:
        """Send a JSON document that takes a while to be written."""
        text = await self.in_thread(json.dumps, value, default=document)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(text)

    def answer(self, value: Any, status: int = 200) -> None:
        """Send a JSON document."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(value, default=document))

    def problem(self, error: BaseException | None) -> tuple[int, str, str]:
        """Return status, name and words of what went wrong."""
        return problem_of(error)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002  (Tornado's signature)
        """Send an error as JSON, with the challenge that makes a browser send its credentials."""
        if not hasattr(self, "_current_user"):
            self.current_user = None
        status, name, words = self.problem((kwargs.get("exc_info") or (None, None, None))[1])
        if status == 401 and self.application.options.basic_auth:  # noqa: PLR2004
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.answer({"error": {"type": name, "message": words}}, status)

"""An adapter for requests."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from io import TextIOBase
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import stream_decode_response_unicode

from celery_durable.http.evidence import Evidence
from celery_durable.http.keys import HEADER, is_read_again, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery_durable.http.evidence import Call
    from celery_durable.http.passing import Passing

_AT_ONCE = 64 * 1024


class DurableAdapter(HTTPAdapter):
    """An adapter that sends the idempotency key of the current step along, and keeps evidence of the call.

    A response that is streamed (`stream=True`) is kept as far as it is read, other than by its `raw`.

    Arguments:
        bodies: whether bodies are kept, as far as they are text.
        max_body: how many characters of each are kept.
        redact: gets the evidence of a call and returns what is kept of it, None for nothing.
        options: those of `requests.adapters.HTTPAdapter`.

    Example:
        >>> session = requests.Session()                     # doctest: +SKIP
        >>> session.mount("https://", DurableAdapter())      # doctest: +SKIP
    """

    def __init__(
        self, *, bodies: bool = True, max_body: int = 2048, redact: Any = None, **options: Any
    ) -> None:
        self._evidence = Evidence(bodies=bodies, max_body=max_body, redact=redact)
        super().__init__(**options)

    def send(self, request: Any, stream: bool = False, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        """Send a request; inside a step with its key, and noted."""
        content, parts = _content(request.body)
        call = self._evidence.begin(request.method, request.url, request.headers, content, parts)
        if call is None:
            return super().send(request, stream, *args, **kwargs)
        request.headers.setdefault(HEADER, call.key)
        try:
            with _overheard(request, call.request if content is None else None):
                response = super().send(request, stream, *args, **kwargs)
            headers = dict(response.headers)
            call.answered(response.status_code, {name.lower(): value for name, value in headers.items()})
            call.decompressed()
            if stream:
                _overhear(response, call)
            else:
                call.receives()
                call.received(response.content)
        except BaseException as error:
            call.failed(error)
            raise
        return response


def _content(body: Any) -> tuple[bytes | None, Iterable[bytes] | None]:
    """Return a body if it is known, and its parts to be read ahead, None if that cannot be."""
    if body is None or isinstance(body, (str, bytes)):
        content = body.encode() if isinstance(body, str) else body or b""
        return content, (content,)
    if not hasattr(body, "read"):
        with suppress(TypeError):
            content = bytes(memoryview(body))
            return content, (content,)
    return None, read_ahead(body) if is_read_again(body) else None


@contextmanager
def _overheard(request: Any, passing: Passing | None) -> Iterator[None]:
    """Have note taken of a body that passes, while the request is sent."""
    body = request.body
    if passing is None or isinstance(body, TextIOBase):  # text is encoded by whoever asks for its class
        yield
        return
    request.body = overheard = (_File if hasattr(body, "read") else _Parts)(body, passing)
    try:
        yield
    finally:
        if request.body is overheard:
            request.body = body


class _Parts:
    """An iterable that is sent."""

    def __init__(self, parts: Any, passing: Passing) -> None:
        self._parts, self._passing = parts, passing

    def __iter__(self) -> Iterator[Any]:
        return self._passing.through(self._parts)


class _File:
    """A file that is sent; whoever goes back in it sends it again."""

    def __init__(self, file: Any, passing: Passing) -> None:
        self._file, self._passing = file, passing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        while part := self.read(_AT_ONCE):
            yield part

    def read(self, *size: int) -> Any:
        if self._passing.size is None:
            self._passing.begin()
        part = self._file.read(*size)
        self._passing.part(part)
        return part

    def seek(self, *where: int) -> Any:
        self._passing.begin()
        return self._file.seek(*where)


def _overhear(response: requests.Response, call: Call) -> None:
    """Have a call take note of what is read of a response."""
    if type(response) is requests.Response:
        response.__class__ = _Response  # not a method put on it, which would keep it from being freed at once
        response.durable_call = call  # type: ignore[attr-defined]


class _Response(requests.Response):
    durable_call: Call

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:  # noqa: FBT001, FBT002
        chunks = super().iter_content(chunk_size)
        if not self._content_consumed:  # else it is not read again
            chunks = self._overheard(chunks)
        return stream_decode_response_unicode(chunks, self) if decode_unicode else chunks

    def _overheard(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        call = self.durable_call
        call.receives()
        try:
            for chunk in chunks:
                call.received(chunk)
                yield chunk
        except Exception as error:
            call.failed(error)
            raise

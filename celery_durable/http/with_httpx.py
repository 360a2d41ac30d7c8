"""Transports for httpx."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from celery_durable.http.evidence import Call, Evidence
from celery_durable.http.keys import HEADER, is_read_again

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from celery_durable.http.passing import Passing


class DurableTransport(httpx.BaseTransport):
    """A transport that sends the idempotency key of the current step along, and keeps evidence of the call.

    Arguments:
        transport: what talks to the server; by default `httpx.HTTPTransport()`.
        bodies: whether bodies are kept, as far as they are text.
        max_body: how many characters of each are kept.
        redact: gets the evidence of a call and returns what is kept of it, None for nothing.

    Example:
        >>> client = httpx.Client(transport=DurableTransport())
    """

    def __init__(self, transport: httpx.BaseTransport | None = None, **options: Any) -> None:
        self._transport = transport or httpx.HTTPTransport()
        self._evidence = Evidence(**options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; inside a step with its key, and noted."""
        call = _begin(self._evidence, request)
        if call is None:
            return self._transport.handle_request(request)
        try:
            with _overheard(request, call):
                response = self._transport.handle_request(request)
        except BaseException as error:
            call.failed(error)
            raise
        call.answered(response.status_code, response.headers)
        stream: Any = response.stream
        response.stream = _Received(stream, call)
        return response

    def close(self) -> None:
        """Close what talks to the server."""
        self._transport.close()


class AsyncDurableTransport(httpx.AsyncBaseTransport):
    """The same for `httpx.AsyncClient`; arguments are those of `DurableTransport`.

    Example:
        >>> client = httpx.AsyncClient(transport=AsyncDurableTransport())
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, **options: Any) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._evidence = Evidence(**options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; inside a step with its key, and noted."""
        call = _begin(self._evidence, request)
        if call is None:
            return await self._transport.handle_async_request(request)
        try:
            with _overheard(request, call):
                response = await self._transport.handle_async_request(request)
        except BaseException as error:
            call.failed(error)
            raise
        call.answered(response.status_code, response.headers)
        stream: Any = response.stream
        response.stream = _AsyncReceived(stream, call)
        return response

    async def aclose(self) -> None:
        """Close what talks to the server."""
        await self._transport.aclose()


def _begin(evidence: Evidence, request: httpx.Request) -> Call | None:
    content, parts = _content(request)
    call = evidence.begin(request.method, str(request.url), request.headers, content, parts)
    if call is not None and HEADER not in request.headers:
        request.headers[HEADER] = call.key
    return call


def _content(request: httpx.Request) -> tuple[bytes | None, Iterable[bytes] | None]:
    """Return a body if it is known, and its parts to be read ahead, None if that cannot be."""
    try:
        content = request.content
    except httpx.RequestNotRead:
        if not isinstance(request.stream, httpx.ByteStream):
            return None, _parts(request.stream)
        content = b"".join(request.stream)  # of a request that is sent again, as a redirect wants it
    return content, (content,)


def _parts(stream: Any) -> Iterable[bytes] | None:
    """Return a stream if it can be read ahead: a form with files, which httpx reads from their beginning."""
    fields = getattr(stream, "fields", None)
    if not isinstance(fields, list):
        return None
    files = [field.file for field in fields if hasattr(field, "file")]
    again = all(isinstance(file, (bytes, str)) or is_read_again(file) for file in files)
    parts: Iterable[bytes] = stream
    return parts if again else None


@contextmanager
def _overheard(request: httpx.Request, call: Call) -> Iterator[None]:
    """Have a call take note of a body that passes, while the request is sent."""
    stream: Any = request.stream
    if isinstance(stream, httpx.ByteStream):
        yield
        return
    request.stream = overheard = _Sent(stream, call.request)
    try:
        yield
    finally:
        if request.stream is overheard:
            request.stream = stream


class _Sent(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, stream: Any, passing: Passing) -> None:
        self._stream, self._passing = stream, passing

    def __iter__(self) -> Iterator[bytes]:
        return self._passing.through(self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._passing.begin()
        async for chunk in self._stream:
            self._passing.part(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Received(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, call: Call) -> None:
        self._stream, self._call = stream, call

    def __iter__(self) -> Iterator[bytes]:
        self._call.receives()
        try:
            for chunk in self._stream:
                self._call.received(chunk)
                yield chunk
        except Exception as error:
            self._call.failed(error)
            raise

    def close(self) -> None:
        self._stream.close()


class _AsyncReceived(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, call: Call) -> None:
        self._stream, self._call = stream, call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._call.receives()
        try:
            async for chunk in self._stream:
                self._call.received(chunk)
                yield chunk
        except Exception as error:
            self._call.failed(error)
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

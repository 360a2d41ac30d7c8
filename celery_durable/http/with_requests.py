"""An adapter for requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter

from celery_durable.http.evidence import Evidence
from celery_durable.http.keys import HEADER, is_read_again, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable


class DurableAdapter(HTTPAdapter):
    """An adapter that sends the idempotency key of the current step along, and keeps evidence of the call.

    A response that is streamed (`stream=True`) is kept without its body.

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
            response = super().send(request, stream, *args, **kwargs)
            headers = dict(response.headers)
            call.answered(response.status_code, {name.lower(): value for name, value in headers.items()})
            if not stream:
                call.received_whole(response.content)
        except BaseException as error:
            call.failed(error)
            raise
        return response


def _content(body: Any) -> tuple[bytes, Iterable[bytes] | None]:
    """Return a body as far as it is known, and its parts to be read ahead, None if that cannot be."""
    if isinstance(body, str):
        body = body.encode()
    if body is None or isinstance(body, bytes):
        return body or b"", (body or b"",)
    return b"", read_ahead(body) if is_read_again(body) else None

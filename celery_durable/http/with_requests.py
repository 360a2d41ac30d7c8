"""An adapter for requests."""

from __future__ import annotations

from typing import Any

from requests.adapters import HTTPAdapter

from celery_durable.http.evidence import HEADER, Evidence


class DurableAdapter(HTTPAdapter):
    """An adapter that sends the idempotency key of the current step along, and keeps evidence of the call.

    A response that is streamed (`stream=True`) is kept without its body.

    Arguments:
        bodies: whether bodies are kept, as far as they are text.
        max_body: how many characters of each are kept.
        redact: gets the evidence of a call and returns what is kept of it.
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
        content = request.body if isinstance(request.body, (bytes, str)) else b""
        call = self._evidence.begin(request.method, request.url, request.headers, content)
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

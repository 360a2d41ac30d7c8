"""The broker of the embedded default: `durable+embedded://` needs no server."""

from __future__ import annotations

_EMBEDDED = "celery_durable.transport.embedded:EmbeddedTransport"


def register() -> None:
    """Teach kombu the URLs `durable+embedded://` and `durable+embedded:///an/absolute/path`.

    It may be called again. kombu cuts a URL at its `+`, so the transport it looks for is `durable`; for a URL
    in a list of alternatives it looks for the whole scheme.
    """
    from kombu.transport import TRANSPORT_ALIASES  # not needed by who only uses the store

    for scheme in ("durable", "durable+embedded"):
        TRANSPORT_ALIASES[scheme] = _EMBEDDED

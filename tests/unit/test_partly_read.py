"""What an event loop has read in part is read to its end, whatever the number of the pipe."""

from __future__ import annotations

import fcntl
import os
import resource
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from celery_durable.partly_read import read_to_the_end

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("number", [10, 1500])
def test_the_rest_is_read_before_the_loop_is_reset(number: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= number + 100:
        pytest.skip(f"no process may have {number} files open here")
    low, writer = os.pipe()
    reader = fcntl.fcntl(low, fcntl.F_DUPFD, number)
    os.set_blocking(reader, False)
    happened: list[str] = []

    def _recv_message() -> Iterator[None]:
        while True:
            try:
                happened.append(os.read(reader, 100).decode())
            except BlockingIOError:
                yield
            else:
                return

    reading = _recv_message()
    next(reading)
    hub = SimpleNamespace(readers={reader: (reading, ())}, reset=lambda: happened.append("reset"))
    read_to_the_end(hub)
    child = threading.Timer(0.1, os.write, (writer, b"the rest"))
    child.start()
    hub.reset()
    child.join()
    for fd in (low, reader, writer):
        os.close(fd)

    assert happened == ["the rest", "reset"]

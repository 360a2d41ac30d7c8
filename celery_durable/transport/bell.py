"""A pipe that says "look again": rung from any thread, waited for together with sockets."""

from __future__ import annotations

import os
from contextlib import suppress


class Bell:
    """Rung any number of times, heard at least once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._closed = False

    def fileno(self) -> int:
        """Return what becomes readable when it rings."""
        return self._read

    def ring(self) -> None:
        """Ring; a full pipe rings already."""
        if not self._closed:
            with suppress(BlockingIOError, OSError):
                os.write(self._write, b".")

    def hush(self) -> None:
        """Stop ringing: to be called before looking at what it rang for."""
        with suppress(BlockingIOError, OSError):
            while len(os.read(self._read, 4096)) == 4096:  # noqa: PLR2004  (a full read may have left some)
                pass

    def close(self) -> None:
        """End."""
        if not self._closed:
            self._closed = True
            os.close(self._read)
            os.close(self._write)

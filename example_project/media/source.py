"""Getting the video."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media.errors import DownloadInterruptedError, MediaError
from example_project.media.files import complete_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_BYTES = 2 * 1024**3
DOWNLOAD_TIME_LIMIT = 1800.0  # seconds for all of it; a server that trickles never reaches a read timeout
TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds without any answer
CHUNK = 1024**2
SERVER_ERROR = 500
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class SourceFile:
    """The run's own copy of the video; `size` in bytes."""

    path: str
    size: int
    origin: str


@durable.step(max_retries=4, retry_backoff=True, autoretry_for=(DownloadInterruptedError,))
@recorded
def fetch(source: str, folder: str) -> SourceFile:
    """Copy a file or download a URL into the run's folder, so that later steps do not depend on it.

    Args:
        source: path or http(s) URL.
        folder: where the copy goes.

    Raises:
        MediaError: there is no such video, or it is larger than `MAX_BYTES`.
        DownloadInterruptedError: the download broke off; the step is tried again.
    """
    remote = "://" in source
    target = Path(folder) / f"source{_suffix(urlsplit(source).path if remote else source)}"
    with complete_file(target) as partial:
        _save(_download(source) if remote else _read(source), partial)
    return SourceFile(str(target), target.stat().st_size, source)


def _suffix(name: str) -> str:
    """The name's ending, if it looks like one: it comes from outside and becomes part of a path."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ".video"


def _save(chunks: Iterable[bytes], target: Path) -> None:
    size = 0
    with target.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_BYTES:
                raise MediaError(f"The video is larger than {MAX_BYTES:,} bytes.")
            file.write(chunk)


def _read(path: str) -> Iterator[bytes]:
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error


def _download(url: str) -> Iterator[bytes]:
    if urlsplit(url).scheme not in {"http", "https"}:
        raise MediaError(f"Cannot fetch {url}: only http and https are supported.")
    give_up = time.monotonic() + DOWNLOAD_TIME_LIMIT
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT) as response:
            _check_status(url, response.status_code)
            for chunk in response.iter_bytes(CHUNK):
                if time.monotonic() > give_up:
                    raise DownloadInterruptedError(f"{url} took longer than {DOWNLOAD_TIME_LIMIT:.0f} s.")
                yield chunk
    except httpx.TransportError as error:
        raise DownloadInterruptedError(f"The download of {url} broke off: {error}.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MediaError(f"Cannot fetch {url}: {error}.") from error


def _check_status(url: str, status: int) -> None:
    if status >= SERVER_ERROR or status == TOO_MANY_REQUESTS:
        raise DownloadInterruptedError(f"{url} answered {status}.")
    if status != httpx.codes.OK:
        raise MediaError(f"Cannot fetch {url}: the server answered {status}.")

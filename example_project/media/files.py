"""Output files that are either complete or absent."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from example_project.media.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block ends well.

    The temporary name is random, because a worker that was only believed dead may still be writing
    its own. What such a worker left behind is removed first; if it still lives, its rename fails.

    Raises:
        MediaError: the block ended without writing anything.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.stem}.*.part{target.suffix}"):
        leftover.unlink(missing_ok=True)
    # The suffix stays last: ffmpeg chooses the format by it.
    partial = target.with_name(f".{target.stem}.{uuid.uuid4().hex}.part{target.suffix}")
    try:
        yield partial
        if not partial.exists() or partial.stat().st_size == 0:
            raise MediaError(f"Nothing was produced for {target.name}.")
        _flush(partial)
        partial.replace(target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a whole text file, or none."""
    with complete_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    """Put a file or a folder's entries on disk: a checkpoint must not outlive the file it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""nginx before a Flower, configured as Flower's documentation shows it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.brokers import free_port, missing
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

# Around the `server` block: what a distribution's nginx.conf has too, and everything it writes in one folder.
_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    sendfile on;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        charset utf-8;

        location {location} {{
            proxy_pass http://127.0.0.1:{flower};
            proxy_set_header Host $host;
        }}
    }}
}}
"""


@contextmanager
def nginx(flower: int, *, prefix: str = "") -> Iterator[str]:
    """Yield the URL at which nginx shows the Flower on port `flower`, with that Flower's prefix."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        missing("nginx is not installed")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="durable-nginx-"))
    location = f"/{prefix}/" if prefix else "/"
    configuration, log = folder / "nginx.conf", folder / "log"
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, port=port, location=location, flower=flower)
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "-e", "stderr", "-p", str(folder), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: _listens(port), what=lambda: f"nginx to listen:\n{log.read_text()}")
        yield f"http://127.0.0.1:{port}{location.rstrip('/')}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

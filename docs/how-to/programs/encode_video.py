"""A service that takes its time: its job is started once, and asked for until it is done."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from celery import Celery

import celery_durable as durable
from celery_durable.http import DurableTransport

URL = "durable+embedded://"
app = Celery(
    "encode_video",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
client = httpx.Client(transport=DurableTransport())
FIRST, LONGEST = timedelta(seconds=1), timedelta(seconds=3)  # or a minute and an hour


@durable.step(max_retries=5, retry_backoff=True, autoretry_for=(httpx.HTTPError,))
def begin(service: str, video: str) -> str:
    return client.post(service, json={"video": video}).raise_for_status().json()["job"]


@durable.step(max_retries=5, retry_backoff=True, autoretry_for=(httpx.HTTPError,))
def ask(job: str) -> str | None:
    return client.get(job).raise_for_status().json()["file"]


@app.task
def encode(service: str, video: str) -> str:
    job = begin(service, video)
    pause = FIRST
    while (file := ask(job)) is None:
        durable.sleep(pause)
        pause = min(2 * pause, LONGEST)
    return file


QUESTIONS = 4
jobs: dict[str, int] = {}  # by idempotency key: how often each was asked for


class Encoder(BaseHTTPRequestHandler):
    """Starts a job once for each key, and is done with it when it is asked often enough."""

    def do_POST(self) -> None:
        key = self.headers["Idempotency-Key"] or f"no key {len(jobs)}"
        jobs.setdefault(key, 0)
        self.answer({"job": f"http://{self.headers['Host']}/job/{list(jobs).index(key)}"})

    def do_GET(self) -> None:
        key = list(jobs)[int(self.path.rpartition("/")[2])]
        jobs[key] += 1
        self.answer({"file": "cat.mp4" if jobs[key] == QUESTIONS else None})

    def answer(self, content: dict[str, str | None]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    encoder = ThreadingHTTPServer(("127.0.0.1", 0), Encoder)
    threading.Thread(target=encoder.serve_forever, daemon=True).start()

    service = f"http://127.0.0.1:{encoder.server_port}"
    result = encode.apply_async((service, "cat"), deadline=timedelta(minutes=5))
    print(result.get())
    print(len(jobs), "job, asked for", *jobs.values(), "times")

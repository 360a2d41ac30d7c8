"""A step that calls a payment service, here one that is played by this program."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from celery import Celery

import celery_durable as durable
from celery_durable.http import DurableTransport
from celery_durable.operations import Runs

URL = "durable+embedded://"
app = Celery(
    "call_partner",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
client = httpx.Client(transport=DurableTransport())


@durable.step(max_retries=3, default_retry_delay=0, autoretry_for=(httpx.HTTPError,))
def charge(url: str, cents: int) -> str:
    answer = client.post(url, json={"cents": cents, "card_number": "4242424242424242"})
    answer.raise_for_status()
    return answer.json()["receipt"]


@app.task
def pay(url: str, cents: int) -> str:
    return charge(url, cents)


receipts: dict[str, str] = {}


class Bank(BaseHTTPRequestHandler):
    """Charges once for each key, and does not answer at the first try."""

    def do_POST(self) -> None:
        key = self.headers["Idempotency-Key"]
        first = key not in receipts
        receipts.setdefault(key, f"receipt-{len(receipts) + 1}")
        body = json.dumps({"receipt": receipts[key]}).encode()
        self.send_response(503 if first else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    bank = ThreadingHTTPServer(("127.0.0.1", 0), Bank)
    threading.Thread(target=bank.serve_forever, daemon=True).start()

    result = pay.delay(f"http://127.0.0.1:{bank.server_port}/charge?session=abc", 500)
    print(result.get(), "of", len(receipts))

    for event in Runs(app).get(result.id).events:
        call = event.detail
        same = call["idempotency_key"] == f"{result.id}/charge"
        print(call["step"], call["method"], call["url"].partition("/charge")[2], call["status"], same)
        print(" ", call["request"]["body"])

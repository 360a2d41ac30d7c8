"""An agent: a model says which tools to call, gets what they return, and so on until it has an answer."""

from __future__ import annotations

import json
import os
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
from celery import Celery

import celery_durable as durable
from celery_durable.http import DurableTransport

URL = "durable+embedded://"
app = Celery(
    "book_rooms",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
client = httpx.Client(transport=DurableTransport(), timeout=60)
MOST_TURNS = 20
Message = dict[str, Any]


def post(url: str, content: dict[str, Any]) -> Any:
    return client.post(url, json=content).raise_for_status().json()


@durable.step(max_retries=5, retry_backoff=True, autoretry_for=(httpx.HTTPError,))
def ask_model(url: str, messages: list[Message]) -> Message:
    return post(f"{url}/chat", {"messages": messages, "tools": list(TOOLS)})


@durable.step(max_retries=5, retry_backoff=True, autoretry_for=(httpx.HTTPError,))
def free_rooms(url: str) -> list[str]:
    return post(f"{url}/free", {})


@durable.step(max_retries=5, retry_backoff=True, autoretry_for=(httpx.HTTPError,))
def book_room(url: str, room: str, guest: str) -> str:
    return post(f"{url}/book", {"room": room, "guest": guest})


TOOLS = {"free_rooms": free_rooms, "book_room": book_room}


@app.task
def assistant(url: str, question: str) -> str:
    messages: list[Message] = [{"role": "user", "content": question}]
    for _ in range(MOST_TURNS):
        answer = ask_model(url, messages)
        messages = [*messages, answer]
        if not answer["tool_calls"]:
            return answer["content"]
        for call in answer["tool_calls"]:
            found = TOOLS[call["name"]](url, **call["arguments"])
            messages = [*messages, {"role": "tool", "id": call["id"], "content": found}]
    raise durable.Fatal(f"no answer after {MOST_TURNS} turns")


def tool_call(name: str, **arguments: str) -> Message:
    return {"id": secrets.token_hex(4), "name": name, "arguments": arguments}


def think(messages: list[Message]) -> Message:
    """Be the model: like a real one, it does not give the same answer twice."""
    found = [one["content"] for one in messages if one["role"] == "tool"]
    if not found:
        return {"role": "assistant", "tool_calls": [tool_call("free_rooms")]}
    if len(found) == 1:
        calls = [
            tool_call("book_room", room=room, guest=guest)
            for room, guest in zip(found[0], ("ada", "bob"), strict=True)
        ]
        return {"role": "assistant", "tool_calls": calls}
    return {"role": "assistant", "tool_calls": [], "content": " and ".join(found[1:])}


class Services(BaseHTTPRequestHandler):
    """The model and the hotel; a booking is made once for each key."""

    calls: ClassVar[list[tuple[str, bytes]]] = []  # the key and the content of each
    booked: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Idempotency-Key"]
        self.calls.append((key, data))
        self.answer(self.result(key, json.loads(data)))

    def result(self, key: str, content: Message) -> Any:
        if self.path == "/chat":
            return think(content["messages"])
        if self.path == "/free":
            return ["the blue room", "the green room"]
        return self.booked.setdefault(key, f"{content['room']} for {content['guest']}")

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    services = ThreadingHTTPServer(("127.0.0.1", 0), Services)
    threading.Thread(target=services.serve_forever, daemon=True).start()

    result = assistant.delay(f"http://127.0.0.1:{services.server_port}", "Rooms for Ada and Bob, please.")
    print(result.get())
    print(*(step.key for step in durable.Runs(app).get(result.id).steps), sep=", ")
    print(len(Services.calls), "calls,", len(Services.booked), "bookings")

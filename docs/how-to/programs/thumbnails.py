"""A video whose thumbnails are made by children on any worker, and whose metadata is fetched side by side."""

from __future__ import annotations

import os

from celery import Celery, Task

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "thumbnails",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
DARK = 30  # seconds into the video


@durable.step
def look_up(what: str, video: str) -> str:
    return f"{what} of {video}"


@app.task
def thumbnail(video: str, second: int) -> str:
    if second == DARK:
        raise durable.Fatal("the picture is black")
    return f"{video}-{second}.png"


@app.task(base=Task, ignore_result=True)  # a plain Celery task
def probe(video: str) -> dict[str, int]:
    return {"seconds": 10 * len(video) + 10}


@app.task
def process(video: str) -> list[object]:
    title, artist = durable.gather(look_up.s("title", video), look_up.s("artist", video))
    length = durable.call(probe.s(video))["seconds"]
    pictures = durable.gather(
        *(thumbnail.s(video, second) for second in range(0, length, 10)),
        return_exceptions=True,
        max_concurrency=2,
    )
    return [title, artist, *(str(one) for one in pictures)]


if __name__ == "__main__":
    for line in process.delay("cat").get():
        print(line)

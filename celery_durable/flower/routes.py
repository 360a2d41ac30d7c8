"""Our routes, in the form that keeps its name and arguments under Flower's `url_prefix`."""

from __future__ import annotations

from typing import Any

from tornado.web import StaticFileHandler, url

from celery_durable.flower.handlers.actions import Bulk, Fork, RunChange, Signal, TokenSignal
from celery_durable.flower.handlers.api import CountsAnswer, OverviewAnswer, RunAnswer, RunsAnswer
from celery_durable.flower.handlers.base import STATIC
from celery_durable.flower.handlers.lists import RunsPage
from celery_durable.flower.handlers.overviews import OverviewPage
from celery_durable.flower.handlers.runs import PayloadAnswer, RawPayload, RunPage, StateAnswer
from celery_durable.flower.handlers.streams import Stream

_RUN = r"([^/]+)"


def routes() -> list[Any]:
    """Return the routes of pages and API."""
    return [
        url(r"/durable/static/(.*)", StaticFileHandler, {"path": str(STATIC)}, name="durable_static"),
        url(r"/durable", RunsPage, name="durable"),
        url(r"/durable/overview", OverviewPage, name="durable_overview"),
        url(r"/durable/stream", Stream, name="durable_stream"),
        url(rf"/durable/run/{_RUN}/payload", PayloadAnswer, name="durable_payload"),
        url(rf"/durable/run/{_RUN}/raw", RawPayload, name="durable_raw"),
        url(rf"/durable/run/{_RUN}/state", StateAnswer, name="durable_state"),
        url(rf"/durable/run/{_RUN}", RunPage, name="durable_run"),
        url(r"/api/durable/runs", RunsAnswer, name="durable_api_runs"),
        url(r"/api/durable/counts", CountsAnswer, name="durable_api_counts"),
        url(r"/api/durable/overview", OverviewAnswer, name="durable_api_overview"),
        url(r"/api/durable/bulk", Bulk, name="durable_api_bulk"),
        url(r"/api/durable/token/([\w.~-]+)", TokenSignal, name="durable_api_token"),
        url(rf"/api/durable/run/{_RUN}/fork", Fork, name="durable_api_fork"),
        url(rf"/api/durable/run/{_RUN}/signal", Signal, name="durable_api_signal"),
        url(rf"/api/durable/run/{_RUN}/(\w+)", RunChange, name="durable_api_action"),
        url(rf"/api/durable/run/{_RUN}", RunAnswer, name="durable_api_run"),
    ]

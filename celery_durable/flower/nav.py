"""The tab: one more entry in Flower's navigation bar, put there as the bar is rendered."""

from __future__ import annotations

import logging
import re
from typing import Any

from tornado.escape import url_unescape, xhtml_escape
from tornado.web import TemplateModule

from celery_durable.flower.sites import enabled

logger = logging.getLogger(__name__)

_ID = "__id__"


class NavTemplate(TemplateModule):
    """Tornado's `Template` module; where it renders the bar, the tab is added after the link to the tasks."""

    def render(self, path: str, **values: Any) -> bytes:
        """Return the rendered template, with the tab if it is the bar."""
        rendered = super().render(path, **values)
        try:
            return self._with_tab(rendered)
        except Exception:
            logger.exception("The Durable tab could not be added to the navigation")
            return rendered

    def _with_tab(self, rendered: bytes) -> bytes:
        if not enabled(self.handler.application):
            return rendered
        tasks = f'href="{self.handler.reverse_url("tasks")}"'.encode()
        here = rendered.find(tasks)
        end = rendered.find(b"</ul>", here)
        if here < 0 or end < 0:
            return rendered
        url = self.handler.reverse_url("durable")
        active = re.match(re.escape(url) + r"(/|$)", self.handler.request.path or "") is not None
        current = ' aria-current="page"' if active else ""
        item = (
            f'<li class="nav-item"><a class="nav-link{" active" if active else ""}" '
            f'href="{xhtml_escape(url)}"{current}>Durable</a></li>'
        )
        return rendered[:end] + (item + self._run_of_task()).encode() + rendered[end:]

    def _run_of_task(self) -> str:
        """Return a link to the run of the task whose page this is; nothing on other pages."""
        before, _, after = self.handler.reverse_url("task", _ID).partition(_ID)
        path = self.handler.request.path or ""
        if not path.startswith(before) or not path.endswith(after) or len(path) <= len(before):
            return ""
        run = url_unescape(path[len(before) : len(path) - len(after)], plus=False)
        url = self.handler.reverse_url("durable_run", run)
        return f'<li class="nav-item"><a class="nav-link" href="{xhtml_escape(url)}">Its durable run</a></li>'

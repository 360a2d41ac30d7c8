"""Sphinx settings: Markdown through MyST, the furo theme, warnings are errors (tox -e docs)."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "celery-durable"
author = "celery-durable contributors"
project_copyright = "2026, celery-durable contributors"
version = release = installed_version("celery-durable")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"celery-durable {release}"

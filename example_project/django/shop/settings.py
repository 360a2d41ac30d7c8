"""Settings of the project; the last lines are what celery-durable needs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from celery_durable.store.embedded import ensure_server

HERE = Path(__file__).resolve().parents[1]

# A Postgres of yours, or one that comes out of a wheel: nothing to install or start.
_url = urlsplit(os.environ.get("SHOP_DATABASE_URL") or ensure_server(HERE / ".durable" / "postgres"))

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path.strip("/"),
        "USER": unquote(_url.username or ""),
        "PASSWORD": unquote(_url.password or ""),
        "HOST": _url.hostname or "",
        "PORT": str(_url.port or ""),
    }
}
SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "only for the example")
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = ["shop", "celery_durable.django"]  # the latter: `manage.py migrate` makes its tables, too

CELERY_BROKER_URL = os.environ.get("SHOP_BROKER_URL", f"durable+embedded://{HERE / '.durable'}")
CELERY_RESULT_BACKEND = "durable+django://default"  # the runs are in the database of the orders
CELERY_DURABLE_LEASE = 10

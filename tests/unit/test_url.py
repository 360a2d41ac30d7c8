"""Which database a URL names."""

from __future__ import annotations

import pytest

from celery_durable.exceptions import ConfigurationError
from celery_durable.store.url import conninfo, redact, strip_prefix


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("durable+postgresql://db/app", "postgresql://db/app"),
        ("durable+postgres://db/app", "postgresql://db/app"),
        ("postgresql+psycopg://u:p@db:5433/app", "postgresql://u:p@db:5433/app"),
        (
            "postgresql://h1,h2/app?target_session_attrs=any",
            "postgresql://h1,h2/app?target_session_attrs=any",
        ),
        ("postgresql:///app?host=/run/postgresql", "postgresql:///app?host=/run/postgresql"),
    ],
)
def test_urls_of_sqlalchemy_and_libpq_name_a_postgres(url: str, meant: str) -> None:
    assert conninfo(url) == meant


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("durable+mysql://db/app", "is not a database URL of celery-durable"),
        ("sqlite:///x", "is not a database URL"),
        ("", "is not a database URL"),
        ("postgresql+psycopg2://db/app", "asks for the driver 'psycopg2'; celery-durable uses psycopg"),
        ("durable+embedded://host/path", "names a host; use durable\\+embedded://"),
    ],
)
def test_any_other_url_is_an_error_that_shows_a_right_one(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        conninfo(url)

    assert "durable+embedded://" in str(error.value)


def test_a_password_is_shown_to_nobody() -> None:
    with pytest.raises(ConfigurationError) as error:
        conninfo("mysql://ada:secret@db:3306/app")

    assert "secret" not in str(error.value)
    assert "secret" not in str(error.value.facts)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:s3cr@t:x@db:5432/app", "postgresql://ada:**@db:5432/app"),
        ("durable+postgresql://ada:secret@h1,h2/app", "durable+postgresql://ada:**@h1,h2/app"),
        ("postgresql://ada@db/app", "postgresql://ada@db/app"),
        ("postgresql:///app", "postgresql:///app"),
    ],
)
def test_what_is_shown_of_a_url_names_the_place_and_the_user(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url", ["durable+postgresql://db/app", "durable:postgresql://db/app", "postgresql://db/app"]
)
def test_the_prefix_for_celery_is_not_part_of_the_url(url: str) -> None:
    assert strip_prefix(url) == "postgresql://db/app"

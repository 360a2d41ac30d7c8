"""Settings: what is misspelt or cannot be meant is an error that says what would be right."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest

from celery_durable.config import Settings, load
from celery_durable.exceptions import ConfigurationError


def test_settings_of_others_are_left_alone() -> None:
    assert load({"task_always_eager": True, "broker_url": "redis://"}) == Settings()


def test_settings_can_be_hashed_also_with_databases() -> None:
    chosen = load({"durable_databases": {"billing": "postgresql://billing/ledger"}})
    assert {chosen: 1}[chosen] == 1
    with pytest.raises(ConfigurationError, match="a dict of URLs by name") as refused:
        load({"durable_databases": "postgresql://user:secret@billing/ledger"})
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="for 'b' a URL such as postgresql://") as refused:
        load({"durable_databases": {"a": "durable+postgresql://billing/ledger", "b": "mysql://u:secret@x/y"}})
    assert "secret" not in str(refused.value)


def test_every_default_is_a_valid_value() -> None:
    assert load({f"durable_{field.name}": field.default for field in fields(Settings)}) == Settings()


def test_values_are_taken_as_they_are_meant() -> None:
    settings = load(
        {"durable_lease": timedelta(minutes=2), "durable_check_interval": 5, "durable_retention": None}
    )

    assert (settings.lease, settings.check, settings.retention) == (120.0, timedelta(seconds=5), None)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("durable_leese", "did you mean durable_lease?"),
        ("durable_max_recovery", "did you mean durable_max_recoveries?"),
        ("durable_qqqqq", "known are: auto_migrate, autoretry"),
    ],
)
def test_a_misspelt_setting_names_the_nearest_one(name: str, near: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load({name: 1})

    assert near in str(error.value)
    assert error.value.facts == {"setting": name}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lease", 0.5, "at least 1"),
        ("lease", "30", "a number of seconds"),
        ("lease", True, "a number of seconds"),
        ("lease", float("nan"), "at least 1"),
        ("lease", None, "a number of seconds"),
        ("max_recoveries", -1, "at least 0"),
        ("max_recoveries", 1.5, "int"),
        ("max_recoveries", timedelta(1), "int"),
        ("max_payload", 0, "at least 1"),
        ("pool_size", 0, "at least 1"),
        ("pool_size", True, "int"),
        ("keeper", 1, "bool"),
        ("schema", "", "a schema name"),
        ("schema", 5, "str"),
        ("version", "", "a printable text of 1 to 200 characters"),
        ("version", "v" * 201, "a printable text of 1 to 200 characters"),
        ("retention", -1, "at least 0"),
        ("publish_errors", "ignore", "one of 'store', 'raise'"),
        ("nondeterminism", None, "one of 'error', 'warn', 'ignore'"),
    ],
)
def test_a_value_that_cannot_be_meant_says_what_was_expected(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load({f"durable_{name}": value})

    assert str(error.value) == f"durable_{name} = {value!r} is not valid: expected {expected}"

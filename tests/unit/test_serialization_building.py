"""Values of a wanted type from plain JSON: what fits is built, and what does not is named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict
from uuid import UUID

import pytest

from celery_durable.exceptions import SerializationError
from celery_durable.serialization import MISSING, build

pydantic = pytest.importorskip("pydantic")

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Level(Enum):
    LOW = 1
    HIGH = 2


@dataclass
class Who:
    name: str
    born: date | None = None


@dataclass
class Approval:
    by: Who
    limit: Decimal
    levels: list[Level] = field(default_factory=list)


@dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("below zero")


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    by: str
    at: datetime


class FormRequired(TypedDict):
    by: Who


class Form(FormRequired, total=False):
    note: str


class Named(Protocol):
    name: str


FITS: list[tuple[object, Any, object]] = [
    ({"by": {"name": "ada"}, "limit": "1.50"}, Approval, Approval(Who("ada"), Decimal("1.50"))),
    (
        {"by": {"name": "ada", "born": "1815-12-10"}, "limit": 3, "levels": [1, "HIGH"]},
        Approval,
        Approval(Who("ada", date(1815, 12, 10)), Decimal(3), [Level.LOW, Level.HIGH]),
    ),
    (Approval(Who("ada"), Decimal(1)), Approval, Approval(Who("ada"), Decimal(1))),
    (
        {"by": "ada", "at": "2026-01-01T00:00:00Z"},
        Model,
        Model(by="ada", at=NEW_YEAR),
    ),
    ({"by": {"name": "ada"}}, Form, {"by": Who("ada")}),
    ({"x": 1}, Point, Point(1.0)),
    ([1, 2], Point, Point(1.0, 2.0)),
    ("2026-01-01T00:00:00Z", datetime, NEW_YEAR),
    ("12:30:00", time, time(12, 30)),
    (90, timedelta, timedelta(seconds=90)),
    (str(UUID(int=1)), UUID, UUID(int=1)),
    (1.1, Decimal, Decimal("1.1")),
    ("a/b", Path, Path("a/b")),
    (1, float, 1.0),
    ([1, "a"], tuple[int, str], (1, "a")),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([1, 1], set[int], {1}),
    ({"a": "1"}, dict[str, Decimal], {"a": Decimal(1)}),
    ("HIGH", Level, Level.HIGH),
    (2, Literal[Level.HIGH], Level.HIGH),
    ("no", Literal["yes", "no"], "no"),
    (None, Who | None, None),
    ({"name": "ada"}, Who | None, Who("ada")),
    ({"x": 1}, Who | Point, Point(1.0)),
    ("1", int | str, "1"),
    ("http://x/", pydantic.AnyUrl, pydantic.AnyUrl("http://x/")),
    ({"a": 1}, MISSING, {"a": 1}),
    ({"a": 1}, Any, {"a": 1}),
    ({"a": 1}, object, {"a": 1}),
    ({"a": 1}, Named, {"a": 1}),
    ({"a": 1}, "Unknown", {"a": 1}),
]


@pytest.mark.parametrize(("value", "wanted", "built"), FITS)
def test_what_fits_is_built(value: object, wanted: Any, built: object) -> None:
    found = build(value, wanted, where="signal 'go'")

    assert found == built
    assert type(found) is type(built)


UNFIT: list[tuple[object, Any, str]] = [
    ({"limit": 1}, Approval, r"value has no field 'by', which \S+Approval requires"),
    ({"by": {"name": "ada", "age": 3}, "limit": 1}, Approval, r'value\["by"\] has a field \'age\''),
    ({"by": {"name": 3}, "limit": 1}, Approval, r'value\["by"\]\["name"\] is of type int, and str is wanted'),
    ({"by": {"name": "a"}, "limit": "x"}, Approval, r'value\["limit"\] cannot be made a decimal.Decimal'),
    ({"by": {"name": "a"}, "limit": 1, "levels": [3]}, Approval, r'value\["levels"\]\[0\] is 3, .*: 1, 2'),
    ({"number": -1}, Positive, "cannot be made a .*Positive: below zero"),
    ({"by": "ada"}, Model, "(?s)Model.*at.*Field required"),
    ({"note": "x"}, Form, "no field 'by'"),
    ({"by": {"name": "a"}, "more": 1}, Form, "a field 'more'"),
    ([1, 2, 3], Point, "list"),
    ([1], tuple[int, str], "has 1 elements, and 2 are wanted"),
    ("yesterday", datetime, "cannot be made a datetime.datetime"),
    (True, timedelta, "bool"),
    ("1", int, "is of type str, and int is wanted"),
    (1, str, "is of type int, and str is wanted"),
    ("aGk=", bytes, "is of type str, and bytes is wanted"),
    ("maybe", Literal["yes", "no"], "'maybe', and one of 'yes', 'no' is wanted"),
    (None, Who, "NoneType"),
    ({"z": 1}, Who | Point, "none of .*Who, .*Point fits"),
    ({"limit": 1}, Approval | None, "no field 'by'"),
    ({"a": 1}, list[int], "is of type dict, and list is wanted"),
    (1, None, "NoneType is wanted"),
]


@pytest.mark.parametrize(("value", "wanted", "message"), UNFIT)
def test_what_does_not_fit_is_named_with_its_place(value: object, wanted: Any, message: str) -> None:
    with pytest.raises(SerializationError) as error:
        build(value, wanted, where="signal 'go'")

    assert str(error.value).startswith("signal 'go': value")
    assert re.search(message, str(error.value))
    assert "resume the run" in str(error.value)

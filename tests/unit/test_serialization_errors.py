"""What cannot be stored is an error at the step: where, what, and what to do instead."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kombu.serialization
import pytest

from celery_durable.exceptions import PayloadTooLargeError, SerializationError
from celery_durable.serialization import JsonSerializer, ValueCodec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHERE = "step 'download'"
CODEC = ValueCodec(JsonSerializer())


class Session:
    """Stands for an ORM's session or row: a class nobody declared storable."""


@dataclass
class Frame:
    at: int
    handle: Any = None


async def coroutine() -> None: ...


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "dict": lambda value: {"a": value},
    "tuple": lambda value: (value,),
    "dataclass": lambda value: Frame(0, value),
}


def refusal(value: object) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        CODEC.encode(value, where=WHERE)
    return caught.value


def test_a_socket_deep_inside_is_named_by_step_path_and_type_with_three_ways_out() -> None:
    with socket.socket() as handle:
        error = refusal({"n": 1, "frames": [Frame(0), Frame(1), Frame(2), Frame(3, handle)]})
    assert error.path == 'value["frames"][3].handle'
    assert error.type == "socket.socket"
    assert error.where == WHERE
    for part in (
        WHERE,
        'value["frames"][3].handle',
        "socket.socket",
        "an id or path",
        "dataclass",
        'serializer="pickle"',
    ):
        assert part in str(error)


def test_what_only_lives_in_a_process_is_refused_by_its_type(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file, sqlite3.connect(":memory:") as connection:
        cases: list[tuple[object, str]] = [
            (file, "_io.TextIOWrapper"),
            (connection, "sqlite3.Connection"),
            ((n for n in [1]), "generator"),
            (lambda: None, "function"),
            (threading.Lock(), "_thread.lock"),
            (Session(), f"{__name__}.Session"),
            (Session, "type"),
            (sys, "module"),
            (object(), "object"),
            (..., "ellipsis"),
            (ValueError("x"), "ValueError"),
            (memoryview(b"x"), "memoryview"),
            (range(3), "range"),
        ]
        for value, name in cases:
            assert refusal(value).type == name
            assert refusal(value).path == "value"
    connection.close()


def test_the_path_leads_through_every_container() -> None:
    bad = object()
    for value, path in (
        ([1, bad], "value[1]"),
        ((bad,), "value[0]"),
        ({bad}, "value[0]"),
        ({"a": {1: bad}}, 'value["a"][1]'),
        ({(1, 2): bad}, "value[<tuple>]"),
        ({"x": {1: 1, bad: 1}}, 'value["x"].keys()[1]'),
        (defaultdict(list, a=[bad]), 'value["a"][0]'),
        ({"~tuple": bad}, 'value["~tuple"]'),
        ({"k" * 100: bad}, 'value["' + "k" * 39 + '…"]'),
        ({"\ud800": bad}, 'value["\\ud800"]'),
    ):
        error = refusal(value)
        assert error.path == path
        str(error).encode()  # can be stored and logged


def test_a_forgotten_await_and_a_consumable_get_a_hint() -> None:
    pending = coroutine()
    assert "await" in str(refusal([pending]))
    pending.close()
    assert "list(...)" in str(refusal(map(str, [])))


def test_a_defaultdict_with_a_factory_of_the_user_is_refused() -> None:
    assert "default_factory" in str(refusal(defaultdict(lambda: 0)))


def test_a_value_that_contains_itself_is_an_error_that_shows_where() -> None:
    inner: dict[str, Any] = {}
    value = {"a": [inner]}
    inner["back"] = value["a"]
    error = refusal(value)
    assert "contains itself" in str(error)
    assert error.path == 'value["a"][0]["back"]'
    assert 'is value["a"] again' in str(error)
    frame = Frame(1)
    frame.handle = frame
    assert "value.handle is value again" in str(refusal(frame))
    branches: list[Any] = []
    branches += [branches, branches]
    assert "value[0] is value again" in str(refusal(branches))


@pytest.mark.parametrize("levels", [101, 100_000])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_nesting_without_end_is_a_clear_error(levels: int, wrap: Any) -> None:
    value: Any = None
    for _ in range(levels):
        value = wrap(value)
    error = refusal(value)
    assert "nested more than 100 levels" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_hundred_levels_come_back(wrap: Any) -> None:
    value: Any = None
    for _ in range(100):
        value = wrap(value)
    assert CODEC.decode(CODEC.encode(value, where=WHERE)) == value


@dataclass
class Evil:
    n: int

    def __getattribute__(self, name: str) -> Any:
        if name == "n":
            message = "not today"
            raise RuntimeError(message)
        return super().__getattribute__(name)


def test_an_error_of_the_users_code_while_a_value_is_read_becomes_ours_with_its_cause() -> None:
    error = refusal(Evil(1))
    assert isinstance(error.__cause__, RuntimeError)
    assert "not today" in str(error)


def test_a_value_over_the_limit_is_an_error_in_human_units() -> None:
    codec = ValueCodec(JsonSerializer(), max_bytes=5 * 1024**2)
    with pytest.raises(PayloadTooLargeError) as caught:
        codec.encode("x" * 13_000_000, where=WHERE)
    assert "step 'download': the value takes 12.4 MiB when stored and the limit is 5.0 MiB" in str(
        caught.value
    )
    assert (caught.value.size, caught.value.limit) == (13_000_002, 5 * 1024**2)
    assert codec.encode("x" * (5 * 1024**2 - 2), where=WHERE)
    with pytest.raises(PayloadTooLargeError, match="takes 4 bytes when stored and the limit is 3 bytes"):
        ValueCodec(JsonSerializer(), max_bytes=3).encode("ab", where=WHERE)


class Pickle:
    name = "pickle"

    def dumps(self, value: object) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes) -> object:
        return pickle.loads(data)


def test_a_failure_of_another_serializer_is_ours_with_the_original_as_cause() -> None:
    with pytest.raises(SerializationError) as caught:
        ValueCodec(Pickle()).encode(lambda: None, where=WHERE)
    assert isinstance(caught.value.__cause__, (pickle.PicklingError, AttributeError))
    assert WHERE in str(caught.value)
    assert caught.value.type == "function"
    assert 'serializer="pickle"' not in str(caught.value)
    with pytest.raises(SerializationError) as caught:
        ValueCodec(Pickle()).decode(b"nonsense")
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


class Kombu:
    name = "json"

    def dumps(self, value: object) -> bytes:
        return str(kombu.serialization.dumps(value, serializer="json")[2]).encode()

    def loads(self, data: bytes) -> object:
        return kombu.serialization.loads(data, "application/json", "utf-8")


@pytest.mark.parametrize("serializer", [JsonSerializer(), Kombu()], ids=["ours", "kombu"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[1] 2",
        b'{"~unknown":1}',
        b'{"~tuple":1}',
        b'{"~dict":[1]}',
        b'{"~dict":[[[],1]]}',
        b'{"~decimal":"x"}',
        b'{"~datetime":["2026-01-01T00:00:00",0,"No/Where"]}',
        b'{"~datetime":["2026-01-01T00:00:00",0,"../../etc/passwd"]}',
        b'{"~defaultdict":["eval",[]]}',
        b'{"~bytes":1}',
        b'{"~dataclass":[]}',
        b'{"~dataclass":null}',
        b'{"~enum":["x:y",{}]}',
        b'{"~set":[[]]}',
        b'{"~adapted":"x"}',
        b"[" * 100_000,
    ],
)
def test_damaged_bytes_are_an_error_of_ours(serializer: Any, data: bytes) -> None:
    with pytest.raises(SerializationError):
        ValueCodec(serializer).decode(data)


def test_a_bare_nan_is_no_json_of_ours() -> None:
    with pytest.raises(SerializationError, match="NaN is not JSON"):
        CODEC.decode(b"[NaN]")


def test_a_tag_of_a_newer_version_says_so() -> None:
    with pytest.raises(SerializationError, match="newer celery-durable"):
        CODEC.decode(b'{"a":{"~future":1}}')


def test_errors_survive_pickling_between_processes() -> None:
    error = refusal([object()])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.type, again.where) == (str(error), "value[0]", "object", WHERE)

"""Errors that are stored and come back: the class, text and attributes, whatever the constructor wants."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import SecurityError
from kombu import serialization
from replaying import seam

import celery_durable as durable
from celery_durable.serialization import is_same

if TYPE_CHECKING:
    from collections.abc import Callable


class Declined(Exception):  # noqa: N818
    """Its constructor takes other arguments than it hands on."""

    def __init__(self, code: int, *, cents: Decimal) -> None:
        super().__init__(f"declined: {code}")
        self.code, self.cents = code, cents


class Doubled(Exception):  # noqa: N818
    """Its constructor would take `args` and make another text of them."""

    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")


class NoMoney(durable.Fatal):
    """A verdict of the user's own."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"no money: {code}")
        self.code = code


class Answered(Exception):  # noqa: N818
    """It has an attribute that cannot be stored."""

    def __init__(self, text: str, response: object) -> None:
        super().__init__(text)
        self.status, self.response = 402, response


class Mute(Exception):  # noqa: N818
    """It has no text."""

    def __str__(self) -> str:
        raise RuntimeError


class Circular(Exception):  # noqa: N818
    """It contains itself."""

    def __init__(self) -> None:
        super().__init__("round")
        self.me = self


looked_at: list[object] = []


class Counted(Exception):  # noqa: N818
    """It counts how often somebody wants to store it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        looked_at.append(self)
        return super().__reduce_ex__(protocol)


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def status_error() -> object:
    httpx = pytest.importorskip("httpx")
    return httpx.Response(402, request=httpx.Request("POST", "http://x/")).raise_for_status()


def validation_error() -> object:
    pydantic = pytest.importorskip("pydantic")
    return pydantic.TypeAdapter(int).validate_python("x")


def data_error() -> object:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    raise sqlalchemy.exc.DataError("select 1/0", {"a": 1}, ValueError("division"), code="9h9h")


def again(error: BaseException) -> Any:
    there = seam()
    return there.load_error(*there.dump_error(error))


def raises(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


KEPT = {
    "own": raises(Declined(7, cents=Decimal("1.50"))),
    "other text": raises(Doubled(7)),
    "verdict": raises(NoMoney(code=7)),
    "mute": raises(Mute(1)),
    "own root": raises(durable.SignalTimeout("late", signal="go")),
    "no plain argument": raises(KeyError(uuid.UUID(int=1), {1, 2}, b"\0")),
    "no unicode": raises(ValueError("a\0b \ud800")),
    "json": lambda: json.loads("{"),
    "unicode": b"\xff".decode,
    "file": lambda: open("/no/such/file"),  # noqa: PTH123, SIM115
    "import": lambda: __import__("no_such_module"),
    "process": lambda: subprocess.run([sys.executable, "-c", "exit(3)"], check=True),
    "pydantic": validation_error,
    "sqlalchemy": data_error,
}


@pytest.mark.parametrize("kind", KEPT)
def test_an_error_comes_back_as_what_it_was(kind: str) -> None:
    error = raised(KEPT[kind])
    found = again(error)

    assert is_same(found, error)
    assert found.args == error.args
    assert {name: repr(value) for name, value in vars(found).items()} == {
        name: repr(value) for name, value in vars(error).items()
    }


def test_what_python_keeps_beside_args_comes_back_too() -> None:
    missing = again(raised(KEPT["file"]))
    assert (missing.errno, missing.filename) == (2, "/no/such/file")
    assert again(raised(KEPT["import"])).name == "no_such_module"
    assert again(raised(KEPT["unicode"])).object == b"\xff"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_a_group_comes_back_with_its_members() -> None:
    members = [ValueError(1), Declined(7, cents=Decimal(5)), ExceptionGroup("in", [NoMoney(code=1)])]  # noqa: F821
    error = ExceptionGroup("out", members)  # noqa: F821
    found = again(error)

    assert is_same(found, error)
    assert [type(one) for one in found.exceptions] == [type(one) for one in members]
    assert found.exceptions[1].cents == 5
    assert found.exceptions[2].exceptions[0].code == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_groups_deep_within_each_other_are_lowered_once() -> None:
    error: BaseException = Counted("x")
    for _ in range(20):
        error = ExceptionGroup("in", [error])  # noqa: F821

    found = again(error)
    for _ in range(20):
        (found,) = found.exceptions
    assert str(found) == "x"
    assert len(looked_at) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are of Python 3.11")
def test_notes_come_back() -> None:
    error = ValueError("no")
    error.add_note("look here")

    assert again(error).__notes__ == ["look here"]
    assert is_same(again(error), error)


def test_an_attribute_that_cannot_be_stored_is_left_out_and_named() -> None:
    error = Answered("refused", object())
    found = again(error)

    assert (type(found), str(found), found.status) == (Answered, "refused", 402)
    assert not hasattr(found, "response")
    assert "response" in found.__notes__[0]
    assert not is_same(found, error)
    assert is_same(again(found), found), "it is said once"


def test_an_error_of_a_library_whose_constructor_wants_more_is_of_its_class() -> None:
    error = raised(status_error)
    found = again(error)

    assert type(found) is type(error)
    assert str(found) == str(error)


def test_an_error_that_contains_itself_is_stored_without_that() -> None:
    assert str(again(Circular())) == "round"


def test_a_class_that_nobody_can_import_is_replaced_by_one_of_its_name_below_its_nearest_base() -> None:
    class Hidden(NoMoney):
        pass

    found = again(Hidden(code=3))

    assert type(found).__qualname__ == Hidden.__qualname__
    assert type(found).__module__ == Hidden.__module__
    assert isinstance(found, NoMoney)
    assert (str(found), found.code) == ("no money: 3", 3)
    assert not is_same(found, Hidden(code=3))


def test_an_argument_that_cannot_be_stored_is_shown() -> None:
    found = again(ValueError("no", object()))

    assert found.args[0] == "no"
    assert found.args[1].startswith("<object object")
    assert not is_same(found, ValueError("no", object()))


def test_errors_that_were_stored_by_an_earlier_release_come_back_with_their_class() -> None:
    stored = {"exc_type": "Declined", "exc_message": ["declined: 7"], "exc_module": __name__}
    found = seam().load_error("application/json", json.dumps(stored).encode())

    assert type(found) is Declined
    assert str(found) == "declined: 7"


def test_a_plain_error_is_stored_as_celery_stores_it() -> None:
    _, dumped = seam().dump_error(ValueError("no", 1))

    assert json.loads(dumped) == {
        "exc_type": "ValueError",
        "exc_message": ["no", 1],
        "exc_module": "builtins",
    }


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("builtins", "dict"), ("builtins", "eval")])
def test_nothing_but_exceptions_is_made_of_what_is_stored(module: str, name: str) -> None:
    stored = {"exc_type": name, "exc_message": ["echo no"], "exc_module": module}
    nested = {"~error": [f"{module}:{name}", {"args": ["echo no"], "made": ["", "echo no"]}]}
    group = {
        "exc_type": "ValueError",
        "exc_message": [1],
        "exc_module": "builtins",
        "exc_durable": {"args": [nested]},
    }

    with pytest.raises(SecurityError):
        seam().load_error("application/json", json.dumps(stored).encode())
    (inner,) = seam().load_error("application/json", json.dumps(group).encode()).args
    assert type(inner) is Exception


def test_only_known_ways_of_making_an_exception_are_taken() -> None:
    stored = {
        "exc_type": "Declined",
        "exc_message": ["declined: 7"],
        "exc_module": __name__,
        "exc_durable": {"made": ["with_traceback", None]},
    }
    found = seam().load_error("application/json", json.dumps(stored).encode())

    assert type(found) is Declined


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("kind", KEPT)
def test_so_it_is_with_every_serializer(serializer: str, kind: str) -> None:
    error, backend = raised(KEPT[kind]), copy.copy(seam()._backend)
    backend.serializer = serializer
    backend.content_type, backend.content_encoding, backend.encoder = serialization.registry._encoders[
        serializer
    ]
    backend.accept = {backend.content_type}

    found = backend.exception_to_python(backend.decoded(backend.error_meta(error), backend.content_type))
    assert is_same(found, error)

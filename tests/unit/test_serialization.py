"""Whatever a step may return comes back equal and with the same type, through every format."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import kombu.serialization
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_durable.serialization import JsonSerializer, ValueCodec, digest

WHERE = "step 'download'"


class KombuSerializer:
    """A format of kombu's registry, as Celery uses it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def dumps(self, value: object) -> bytes:
        self._type, self._encoding, data = kombu.serialization.dumps(value, serializer=self.name)
        return data if isinstance(data, bytes) else data.encode()

    def loads(self, data: bytes) -> object:
        return kombu.serialization.loads(data, self._type, self._encoding, accept={self._type})


class Colour(Enum):
    RED = "red"
    BLUE = ("b", 3)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Rights(IntFlag):
    READ = 1
    WRITE = 2
    SHARE = 4


class Size(NamedTuple):
    width: int
    height: Any = 1


@dataclass(frozen=True, slots=True)
class Frame:
    at: Any
    size: Any = None


@dataclass
class Clip:
    name: str
    frames: list[Any]
    rank: Any = field(init=False, default=None)


TEXT = st.text(st.characters(), max_size=8)  # every character, NUL and lone surrogates among them
TAG_LIKE = st.sampled_from(
    ["~", "~tuple", "~dict", "~opaque", "~new", "__type__", "__value__", "datetime", "~decimal"]
)
FIXED_ZONES = st.builds(
    timezone,
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
    st.text(st.characters(), min_size=1, max_size=4),
) | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
ZONES = st.none() | FIXED_ZONES | st.sampled_from([ZoneInfo("Europe/Berlin"), ZoneInfo("UTC"), timezone.utc])
HASHABLE_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | TEXT
    | TAG_LIKE
    | st.binary(max_size=8)
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=ZONES)
    | st.times(timezones=ZONES)
    | st.timedeltas()
    | st.sampled_from([*Colour, *Level, Rights.READ | Rights.SHARE, Rights(0)])
    | st.sampled_from([Path("/a/b"), Path("caf\udce9"), PurePosixPath("x/y"), PureWindowsPath("c:\\x")])
)
HASHABLES = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Frame, at=inner, size=inner)
        | st.builds(Size, st.integers(), inner)
    ),
    max_leaves=4,
)
LEAVES = HASHABLES | st.just(math.nan) | st.just(Decimal("sNaN")) | st.binary(max_size=8).map(bytearray)


def _clip(name: str, frames: list[Any], rank: Any) -> Clip:
    clip = Clip(name, frames)
    clip.rank = rank
    return clip


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mappings = st.dictionaries(TEXT | TAG_LIKE, inner, max_size=4) | st.dictionaries(
        HASHABLES, inner, max_size=3
    )
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLES, max_size=3)
        | mappings
        | mappings.map(OrderedDict)
        | mappings.map(lambda items: defaultdict(list, items))
        | st.dictionaries(HASHABLES, st.integers(), max_size=3).map(Counter)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(0, 5))
        | st.builds(_clip, TEXT, st.lists(inner, max_size=3), inner)
    )


VALUES = st.recursive(LEAVES, _containers, max_leaves=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | TAG_LIKE,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT | TAG_LIKE, inner, max_size=5),
    max_leaves=20,
)


def same(one: Any, two: Any) -> bool:  # noqa: PLR0911  (one answer per kind of value)
    """Equal, of the same type at every place, in the same order."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(two)) or (
            one == two and math.copysign(1, one) == math.copysign(1, two)
        )
    if isinstance(one, Decimal):
        return one.as_tuple() == two.as_tuple()
    if isinstance(one, dict):
        return getattr(one, "default_factory", None) is getattr(two, "default_factory", None) and same(
            [list(pair) for pair in one.items()], [list(pair) for pair in two.items()]
        )
    if isinstance(one, (list, tuple, deque)):
        return (
            len(one) == len(two)
            and getattr(one, "maxlen", None) == getattr(two, "maxlen", None)
            and all(same(*pair) for pair in zip(one, two, strict=True))
        )
    if is_dataclass(one):
        return all(same(getattr(one, item.name), getattr(two, item.name)) for item in fields(one))
    if isinstance(one, (datetime, time)):
        naive = one.replace(tzinfo=None) == two.replace(tzinfo=None)
        return naive and one.fold == two.fold and same_zone(one.tzinfo, two.tzinfo)
    return bool(one == two)


def same_zone(one: tzinfo | None, two: tzinfo | None) -> bool:
    return type(one) is type(two) and one == two and (one is None or one.tzname(None) == two.tzname(None))


def json_codec() -> ValueCodec:
    return ValueCodec(JsonSerializer())


def back(codec: ValueCodec, value: object) -> object:
    return codec.decode(codec.encode(value, where=WHERE))


@settings(max_examples=600, deadline=None)
@given(VALUES)
def test_every_supported_value_comes_back_equal_and_of_the_same_type(value: object) -> None:
    assert same(back(json_codec(), value), value)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_plain_json_values_come_back_even_when_they_look_like_tags(value: object) -> None:
    assert same(back(json_codec(), value), value)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_every_supported_value_survives_kombus_json(value: object) -> None:
    assert same(back(ValueCodec(KombuSerializer("json")), value), value)


@pytest.mark.parametrize("name", ["msgpack", "yaml"])
@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_every_supported_value_survives_the_other_plain_formats(name: str, value: object) -> None:
    pytest.importorskip(name)
    assert same(back(ValueCodec(KombuSerializer(name)), value), value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_a_result_has_the_same_digest_live_and_replayed(value: object) -> None:
    assert digest({"value": back(json_codec(), value)}) == digest({"value": value})


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_encoding_a_decoded_value_stores_the_same_again(value: object) -> None:
    codec = json_codec()
    decoded = codec.decode(codec.encode(value, where=WHERE))
    assert same(back(codec, decoded), value)


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "datetime", "__value__": "2026-01-01T00:00:00"},
        {"__type__": "no such type", "__value__": 1},
        [{"__value__": 1, "__type__": {"__type__": "uuid", "__value__": {}}}],
        {"~tuple": [1, 2]},
        {"~dict": [["a", 1]]},
        {"~not-a-tag": None},
        {"~": 1, "b": 2},
    ],
)
@pytest.mark.parametrize("serializer", [JsonSerializer(), KombuSerializer("json")], ids=["ours", "kombu"])
def test_a_dict_that_looks_like_a_tag_is_not_taken_for_one(serializer: Any, value: object) -> None:
    assert back(ValueCodec(serializer), value) == value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": [1, 2.0, None, True, "ü\0"]}, '{"a":[1,2.0,null,true,"ü\\u0000"]}'),
        ((1, "a"), '{"~tuple":[1,"a"]}'),
        ({1: "one"}, '{"~dict":[[1,"one"]]}'),
        (Decimal("1.10"), '{"~decimal":"1.10"}'),
        (b"\x00\xff", '{"~bytes":"AP8="}'),
        (math.inf, '{"~float":"inf"}'),
        (2**64, '{"~int":"0x10000000000000000"}'),
        ("\ud800a", '{"~str":"\\\\ud800a"}'),
        (datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), '{"~datetime":"2026-01-02T03:04:00+00:00"}'),
        (
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            '{"~datetime":["2026-10-25T02:30:00",1,"Europe/Berlin"]}',
        ),
        (date(2026, 1, 2), '{"~date":"2026-01-02"}'),
        (time(3, 4), '{"~time":"03:04:00"}'),
        (timedelta(days=-1, microseconds=5), '{"~timedelta":[-1,0,5]}'),
        (UUID(int=1), '{"~uuid":"00000000-0000-0000-0000-000000000001"}'),
        (PurePosixPath("a/b"), '{"~purepath":["PurePosixPath","a/b"]}'),
        (Path("a/b"), '{"~path":"a/b"}'),
        (deque([1], 3), '{"~deque":[3,[1]]}'),
        (Counter("a"), '{"~counter":[["a",1]]}'),
        (defaultdict(int, {"a": 1}), '{"~defaultdict":["int",[["a",1]]]}'),
        (OrderedDict(a=1), '{"~ordereddict":[["a",1]]}'),
    ],
)
def test_the_stored_form_never_changes(value: object, stored: str) -> None:
    # These bytes are in databases: a form may be added, none may change.
    codec = json_codec()
    assert codec.encode(value, where=WHERE).decode() == stored
    assert same(codec.decode(stored.encode()), value)


def test_an_int_beyond_pythons_limit_of_digits_comes_back_exactly() -> None:
    assert back(json_codec(), 7**20_000) == 7**20_000


def test_a_dict_keeps_its_order_in_yaml_which_sorts_keys() -> None:
    pytest.importorskip("yaml")
    assert list(back(ValueCodec(KombuSerializer("yaml")), {"b": 1, "a": {"d": 2, "c": 3}})) == ["b", "a"]


def test_a_decoded_value_shares_nothing_with_the_encoded_one() -> None:
    value = {"tags": ["a"], "clip": Clip("intro", [1])}
    decoded: Any = back(json_codec(), value)
    decoded["tags"].append("b")
    decoded["clip"].frames.append(2)
    assert value == {"tags": ["a"], "clip": Clip("intro", [1])}


def test_a_string_or_number_of_a_subclass_comes_back_as_its_base() -> None:
    class Markup(str):
        __slots__ = ()

    class Metres(float):
        def __repr__(self) -> str:
            return "a length"

    class Count(int):
        def __str__(self) -> str:
            return "many"

    class Blob(bytes):
        pass

    assert same(back(json_codec(), [Markup("a"), Metres(1.5), Count(3), Blob(b"x")]), ["a", 1.5, 3, b"x"])


def test_a_zone_of_another_library_comes_back_as_a_fixed_offset_at_the_same_instant() -> None:
    from dateutil import tz

    stored_by_s3 = datetime(2026, 1, 2, tzinfo=tz.tzutc())
    in_berlin = datetime(2026, 7, 2, tzinfo=tz.gettz("Europe/Berlin"))
    assert same(back(json_codec(), stored_by_s3), datetime(2026, 1, 2, tzinfo=timezone.utc))
    assert same(
        back(json_codec(), in_berlin), datetime(2026, 7, 2, tzinfo=timezone(timedelta(hours=2), "CEST"))
    )


def test_any_other_serializer_gets_the_value_itself() -> None:
    value = {1: (Clip("a", []), {3})}
    kombu.serialization.enable_insecure_serializers(["pickle"])
    try:
        assert same(back(ValueCodec(KombuSerializer("pickle")), value), value)
    finally:
        kombu.serialization.disable_insecure_serializers()


def test_importing_the_package_does_not_import_pydantic() -> None:
    program = "import sys, celery_durable.serialization; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

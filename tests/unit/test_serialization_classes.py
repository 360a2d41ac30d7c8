"""Dataclasses, namedtuples, Enums and pydantic models: which class a stored value comes back as."""

from __future__ import annotations

import collections.abc
import re
import sys
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum, Flag, auto
from functools import cached_property
from types import ModuleType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import pytest

from celery_durable.exceptions import SerializationError
from celery_durable.serialization import MISSING, JsonSerializer, ValueCodec, return_annotation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nowhere import Unknown

pydantic = pytest.importorskip("pydantic")

CODEC = ValueCodec(JsonSerializer())
WHERE = "step 'download'"
T = TypeVar("T")


class Codec(Enum):
    H264 = "h264"
    AV1 = "av1"


class Option(Flag):
    FAST = auto()
    TWO_PASS = auto()


@dataclass
class Track:
    language: str
    codec: Codec = Codec.H264


@dataclass
class Video:
    path: str
    tracks: list[Track] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)


@dataclass
class Trailer(Video):
    pass


@dataclass
class Tree:
    name: str
    children: list[Tree]
    parent: Optional[Tree] = None  # noqa: UP045  (both spellings are read)


@dataclass
class Box(Generic[T]):
    content: T


class Point(NamedTuple):
    x: int
    y: int = 0


class Report(TypedDict):
    best: Video
    others: list[Video]


class Price(pydantic.BaseModel):
    amount: Decimal
    currency: str = "EUR"


class Invoice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    prices: dict[str, Price]
    note: Any = None
    _audit: list[str] = pydantic.PrivateAttr(default_factory=list)


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Link(pydantic.BaseModel):
    url: pydantic.HttpUrl


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


@pydantic.dataclasses.dataclass
class Validated:
    count: int = pydantic.Field(default=3)


def encode(value: object, annotation: object = MISSING) -> bytes:
    return CODEC.encode(value, annotation, where=WHERE)


def back(value: object, annotation: object = MISSING) -> Any:
    return CODEC.decode(encode(value, annotation), annotation)


def renamed(data: bytes) -> bytes:
    """What the bytes would be if the classes had had other names, in a module that is gone, when stored."""
    return re.sub(rb'"(=?)[\w.]+:(\w+)', rb'"\1gone.module:Old\2', data)


VIDEO = Video("a.mp4", [Track("de", Codec.AV1), Track("en")], (640, 480))


@pytest.mark.parametrize(
    "value",
    [
        VIDEO,
        Trailer("b.mp4"),
        Tree("root", [Tree("leaf", [])]),
        Box(Box(Codec.AV1)),
        Point(1),
        Option.FAST | Option.TWO_PASS,
        Price(amount=Decimal("1.10")),
        Invoice(prices={"a": Price(amount=Decimal(1))}, note=(1, 2), colour="red"),
        Validated(5),
        {"videos": [VIDEO], Codec.AV1: {Point(1, 2)}},
    ],
)
def test_a_class_of_a_module_comes_back_with_and_without_annotation(value: object) -> None:
    for annotation in (MISSING, type(value), Any, object, None):
        again = back(value, annotation)
        assert type(again) is type(value)
        assert again == value


def local_classes() -> tuple[type[Any], type[Any], Any]:
    @dataclass
    class Local:
        n: int

    class Mode(Enum):
        ON = 1

    class Model(pydantic.BaseModel):
        n: int

    return Local, Model, Mode


def annotations_around(cls: Any, value: Any) -> Iterator[tuple[object, object]]:
    yield cls, value
    yield Optional[cls], value  # noqa: UP045  (both spellings are read)
    yield Union[cls, int, None], value  # noqa: UP007
    yield cls | None, value
    yield Annotated[cls, {"not": "hashable"}], value
    yield NewType("Alias", cls), value
    yield list[cls], [value]
    yield list[cls] | dict[str, cls], {"a": value}
    yield dict[str, cls], {"~odd": value}
    yield dict[int, list[cls]], {1: [value]}
    yield tuple[cls, ...], (value, value)
    yield tuple[int, cls], (1, value)
    yield Annotated[list[cls] | None, "x"], [value]
    yield Box[int], Box(1)
    yield TypeVar("B", bound=cls), value
    yield TypedDict("Result", {"best": cls, "all": list[cls]}), {"best": value, "all": [value], "count": 1}


def test_a_local_class_comes_back_when_the_annotation_names_it() -> None:
    local, model, mode = local_classes()
    for cls, value in ((local, local(1)), (model, model(n=2)), (mode, mode.ON)):
        for annotation, holder in annotations_around(cls, value):
            assert back(holder, annotation) == holder, annotation


def test_abstract_collections_in_annotations_lead_to_the_class() -> None:
    local, _, _ = local_classes()

    assert back([local(1)], collections.abc.Sequence[local]) == [local(1)]
    assert back({"a": local(1)}, collections.abc.Mapping[str, local]) == {"a": local(1)}


def test_a_literal_of_enum_members_names_the_enum() -> None:
    class Mode(Enum):
        ON = 1

    assert back(Mode.ON, Literal[Mode.ON]) is Mode.ON


def test_a_class_that_was_renamed_and_moved_is_found_by_the_annotation() -> None:
    for value in (VIDEO, Point(1, 2), Codec.AV1, Price(amount=Decimal(1)), Invoice(prices={})):
        stored = renamed(encode(value, type(value)))
        assert CODEC.decode(stored, type(value)) == value
        assert CODEC.decode(stored, type(value) | int) == value


def test_a_renamed_class_stored_without_annotation_is_found_once_one_is_added() -> None:
    stored = renamed(encode([Track("de")]))
    with pytest.raises(SerializationError, match=r"gone\.module\.OldTrack.*return annotation"):
        CODEC.decode(stored)
    assert CODEC.decode(stored.replace(b"OldCodec", b"Codec"), list[Track]) == [Track("de")]


def test_the_annotation_wins_over_a_class_of_the_old_name_that_still_exists() -> None:
    new = make_dataclass("NewVideo", [("path", str), ("tracks", list), ("size", tuple)])
    assert type(CODEC.decode(encode(VIDEO, Video), new)) is new


def test_a_subclass_of_the_annotated_class_comes_back_as_itself() -> None:
    assert type(back(Trailer("t.mp4"), Video)) is Trailer
    assert type(back([Trailer("t.mp4"), VIDEO], list[Video])[0]) is Trailer


def test_a_renamed_subclass_with_more_fields_is_not_taken_for_its_base() -> None:
    stored = encode(VIDEO).replace(b"Video", b"GoneVideo").replace(b'"size"', b'"extra":1,"size"')
    with pytest.raises(SerializationError, match="GoneVideo"):
        CODEC.decode(stored, Video)


def test_fields_of_a_typed_dict_a_dataclass_and_a_model_are_places_of_their_own() -> None:
    report: Report = {"best": VIDEO, "others": [VIDEO]}
    assert CODEC.decode(renamed(encode(report, Report)).replace(b"OldCodec", b"Codec"), Report) == report
    assert CODEC.decode(renamed(encode(VIDEO, Video)), Video) == VIDEO


def test_a_parametrised_model_comes_back_by_annotation_and_is_refused_without() -> None:
    page = Page[Price](items=[Price(amount=Decimal(1))])
    assert back(page, Page[Price]) == page
    assert type(back(page, Page[Price])) is Page[Price]


def test_pydantic_state_is_kept_private_attributes_extras_and_unset_fields() -> None:
    invoice = Invoice(prices={}, colour="red")
    invoice._audit.append("seen")
    again = back(invoice, Invoice)
    assert again == invoice
    assert again._audit == ["seen"]
    assert again.model_extra == {"colour": "red"}
    assert again.model_fields_set == {"prices", "colour"}


def test_a_model_is_not_validated_again_when_it_comes_back() -> None:
    price = Price(amount=Decimal(1))
    price.currency = 7
    assert back(price).currency == 7


def test_a_value_only_pydantic_understands_comes_back_through_its_annotation() -> None:
    link = Link(url="https://example.com/a")
    assert back(link) == link
    assert type(back(link).url) is type(link.url)
    assert back([link.url], list[pydantic.HttpUrl]) == [link.url]


def test_a_secret_is_refused_rather_than_stored_in_clear_or_masked() -> None:
    with pytest.raises(SerializationError) as caught:
        encode(Login(password="s3cret"))
    assert caught.value.path == "value.password"
    assert "s3cret" not in str(caught.value)


def test_a_new_field_with_default_is_filled_in_and_a_dropped_one_is_forgotten() -> None:
    for value in (Video("a"), Point(1, 5), Price(amount=Decimal(1), currency="USD")):
        stored = encode(value, type(value))
        newer = stored.replace(b"{", b'{"gone":1,', 2).replace(b'{"gone":1,', b"{", 1)
        assert CODEC.decode(newer, type(value)) == value
    assert CODEC.decode(b'{"~dataclass":["=x:y",{"path":"a"}]}', Video) == Video("a")
    assert CODEC.decode(b'{"~namedtuple":["=x:y",{"x":1}]}', Point) == Point(1)
    assert CODEC.decode(b'{"~pydantic":["=x:y",{"amount":{"~decimal":"1"}}]}', Price) == Price(
        amount=Decimal(1)
    )


@pytest.mark.parametrize(
    ("stored", "cls"),
    [
        (b'{"~dataclass":["=x:y",{}]}', Video),
        (b'{"~namedtuple":["=x:y",{}]}', Point),
        (b'{"~pydantic":["=x:y",{}]}', Price),
        (b'{"~enum":["=x:y","GONE"]}', Codec),
    ],
)
def test_a_new_required_field_or_a_removed_member_is_an_error_with_advice(stored: bytes, cls: type) -> None:
    with pytest.raises(SerializationError, match=r"default|alias"):
        CODEC.decode(stored, cls)


@dataclass(slots=True)
class WithSlotsAndLateFields:
    name: str
    late: int = field(init=False)
    unset: int = field(init=False)

    def __post_init__(self) -> None:
        self.late = 1


@dataclass
class Priced:
    price: float

    def __post_init__(self) -> None:
        self.price = self.price * 1.2
        self.cache = {"not": "a field"}


@dataclass(init=False)
class OwnInit:
    n: int

    def __init__(self, twice: int) -> None:
        self.n = twice // 2

    @cached_property
    def square(self) -> int:
        return self.n**2


def test_fields_outside_init_come_back_and_one_never_set_stays_unset() -> None:
    value = WithSlotsAndLateFields("a")
    value.late = 9
    again = back(value)
    assert (again.name, again.late) == ("a", 9)
    assert not hasattr(again, "unset")


def test_post_init_runs_for_attributes_that_are_no_fields_but_changes_no_field() -> None:
    value = Priced(10)
    assert back(value) == value
    assert back(value).cache == {"not": "a field"}


def test_an_init_of_the_user_is_not_called_and_a_cached_property_is_computed_again() -> None:
    value = OwnInit(8)
    assert value.square == 16
    assert back(value) == value
    assert back(value).square == 16


@dataclass
class NeedsHandle:
    n: int
    handle: InitVar[Any]


@dataclass
class Mapped(dict):
    n: int


@dataclass
class Row:
    __mapper__ = object()
    n: int


def test_a_dataclass_that_could_not_be_built_again_is_refused_with_the_reason() -> None:
    loose = Track("de")
    loose.comment = "x"
    for value, reason in (
        (NeedsHandle(1, None), "InitVar 'handle'"),
        (loose, "'comment' is not a field"),
        (Mapped(1), "subclass"),
        (Row(1), "Row"),
    ):
        with pytest.raises(SerializationError, match=reason):
            encode([value], list[type(value)])


def test_a_local_class_without_annotation_is_refused_at_the_step_and_not_at_the_replay() -> None:
    local, model, mode = local_classes()
    for value in (local(1), model(n=1), mode.ON):
        with pytest.raises(
            SerializationError, match="top of a module, or name it in the step's return annotation"
        ):
            encode({"a": value})


def test_a_subclass_of_a_container_comes_back_as_what_the_annotation_says_and_is_refused_without() -> None:
    class Charge(dict):
        pass

    assert type(back(Charge(id=1), dict)) is dict
    assert back([Charge(id=1)], list[dict[str, int]]) == [{"id": 1}]
    with pytest.raises(SerializationError, match="convert it, or annotate the base"):
        encode(Charge(id=1))


def test_a_class_defined_in_main_is_stored_by_the_name_the_module_is_imported_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = type("Spec", (), {"name": "shop.tasks"})()
    main.Order = make_dataclass("Order", [("n", int)], namespace={"__module__": "__main__"})
    main.Order.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", main)
    stored = encode(main.Order(1))
    assert b'"shop.tasks:Order"' in stored
    assert CODEC.decode(stored) == main.Order(1)


def test_a_class_of_another_programs_main_is_an_error_that_says_to_annotate() -> None:
    with pytest.raises(SerializationError, match=r"__main__\.Gone.*return annotation"):
        CODEC.decode(b'{"~dataclass":["__main__:Gone",{}]}')


@pytest.mark.parametrize("tag", ["~dataclass", "~namedtuple", "~pydantic", "~enum", "~flag"])
@pytest.mark.parametrize(
    "name",
    [
        "subprocess:Popen",
        "builtins:dict",
        "os:system",
        "os:path",
        "sys:modules",
        "x",
        "",
        "pydantic:BaseModel",
        ":",
    ],
)
def test_a_forged_name_builds_nothing_but_records(tag: str, name: str) -> None:
    with pytest.raises(SerializationError):
        CODEC.decode(f'{{"{tag}":["{name}",{{"args":"id"}}]}}'.encode())


def test_a_forged_name_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lazy")
    module.__getattr__ = lambda name: pytest.fail(f"{name} was looked up")
    monkeypatch.setitem(sys.modules, "lazy", module)
    for name in ("lazy:Anything", "wsgiref.types:InputStream"):
        with pytest.raises(SerializationError):
            CODEC.decode(f'{{"~dataclass":["{name}",{{}}]}}'.encode())
    assert "wsgiref.types" not in sys.modules


def test_the_return_annotation_of_a_function_is_found_whatever_else_is_annotated() -> None:
    @dataclass
    class Local:
        n: int

    def plain(url: Unknown) -> list[Video]: ...
    def local(n: int) -> Local:
        return Local(n)

    async def later() -> Point: ...
    def none() -> None: ...
    def nothing(): ...  # noqa: ANN202
    def unknown() -> Unknown: ...

    assert return_annotation(plain) == list[Video]
    assert return_annotation(local) is Local
    assert return_annotation(later) is Point
    assert return_annotation(none) is type(None)
    assert return_annotation(nothing) is MISSING
    assert return_annotation(unknown) is MISSING
    assert return_annotation(len) is MISSING

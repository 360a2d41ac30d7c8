"""What is left of a long chain, as Celery sees it: a list that is read when somebody looks."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import TYPE_CHECKING, Any, cast

import pytest
from kombu.utils import json

from celery_durable.chains import Reference, Rest

if TYPE_CHECKING:
    from celery_durable.chains import Loader

STORED = {"long": list("zyxwv"), "other": list("cba")}
LONG, OTHER = Reference("long", "root", 5), Reference("other", "root", 3)


class Reading:
    """Links in memory, and what was read of them."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def all(self, reference: Reference) -> list[str]:
        self.read.append(f"all {reference.left} of {reference.chain}")
        return STORED[reference.chain][: reference.left]

    def next(self, reference: Reference) -> str:
        self.read.append(f"{reference.left} of {reference.chain}")
        return STORED[reference.chain][reference.left - 1]

    def decoded(self, row: dict[str, Any]) -> str:
        return str(row["signature"])


@pytest.fixture
def load() -> Reading:
    """Return a place that links are read from."""
    return Reading()


def rest(load: Reading, *parts: Any) -> Rest:
    return Rest(parts, cast("Loader", load))


@pytest.mark.parametrize(
    "parts", [(), (LONG,), ("1",), (LONG, "1", "2"), (OTHER, LONG), ("1", OTHER, "2", LONG, "3")]
)
def test_it_is_the_list_that_it_stands_for(load: Reading, parts: tuple[Any, ...]) -> None:
    meant = [
        link for part in parts for link in (STORED[part.chain] if isinstance(part, Reference) else [part])
    ]
    stands = rest(load, *parts)

    while meant:
        assert (len(stands), list(stands), list(reversed(stands))) == (len(meant), meant, meant[::-1])
        assert (stands[-1], stands[0], stands[1:], stands[-2:]) == (
            meant[-1],
            meant[0],
            meant[1:],
            meant[-2:],
        )
        assert list(operator.add(stands, ["4", "5"])) == [*meant, "4", "5"]
        assert json.loads(json.dumps({"chain": stands})) == {"chain": meant}
        assert pickle.loads(pickle.dumps(stands)) == meant
        assert list(copy.deepcopy({"chain": stands})["chain"]) == meant
        stands, meant = stands[:-1], meant[:-1]
    assert not stands
    assert list(stands[:-1]) == []
    with pytest.raises(IndexError):
        stands[-1]


def test_the_next_link_is_all_that_is_read_to_go_on(load: Reading) -> None:
    assert rest(load, OTHER, LONG)[:-1][:-1][-1] == "x"
    assert load.read == ["3 of long"]


def test_a_link_that_was_read_with_the_claim_is_not_read_again(load: Reading) -> None:
    stands = rest(load, LONG)
    assert stands.wanted == ("long", 5)

    stands.found({"signature": "found"})

    assert stands[-1] == "found"
    assert load.read == []
    assert stands[:-1].wanted == ("long", 4)


def test_a_link_in_the_message_is_not_wanted(load: Reading) -> None:
    assert rest(load, LONG, "1").wanted is None
    assert rest(load).wanted is None
    assert rest(load, LONG, "1")[-1] == "1"
    assert load.read == []

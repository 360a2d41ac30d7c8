"""A value that nobody knows: every question is answered by who made it."""

from __future__ import annotations

import copy
import json
import math
import operator
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from celery_durable import unknown

if TYPE_CHECKING:
    from collections.abc import Callable


class Asked(BaseException):
    """Somebody looked."""


def look() -> None:
    raise Asked


QUESTIONS: list[Callable[[Any], Any]] = [
    bool, str, repr, hash, len, iter, list, tuple, int, float, complex, bytes, abs, round, math.floor,
    os.fspath, operator.index, operator.neg, operator.inv, copy.copy, copy.deepcopy, pickle.dumps, dict, set,
    lambda value: value == 1, lambda value: value != 1, lambda value: value < 1, lambda value: 1 in value,
    lambda value: value + 1, lambda value: 1 + value, lambda value: value % 2, lambda value: value @ value,
    lambda value: value[0], lambda value: value.name, lambda value: value(), lambda value: f"{value:>3}",
    lambda value: isinstance(value, int), lambda value: setattr(value, "name", 1), lambda value: {value},
    lambda value: value.__enter__(), lambda value: value.__class__, lambda value: not value,
]  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS, ids=range(len(QUESTIONS)))
def test_whoever_looks_is_answered_by_who_made_it(question: Callable[[Any], Any]) -> None:
    with pytest.raises(Asked):
        question(unknown.Unknown(look))


def test_it_may_be_handed_on() -> None:
    value = unknown.Unknown(look)

    assert [value, 1][1] == 1
    assert (value is None) is False
    assert unknown.inside(value)
    assert unknown.inside((["x", {"y": (value,)}], {}))
    assert not unknown.inside((["x", {"y": (1,)}], {}))


def test_unknown_arguments_are_as_good_as_any() -> None:
    digest, words = unknown.ANY_ARGUMENTS

    assert digest == b"x"
    assert digest == b"x"
    assert not digest != b"x"  # noqa: SIM202
    assert json.dumps(words) == '""'

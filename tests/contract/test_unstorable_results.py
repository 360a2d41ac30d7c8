"""Results that Celery's serializer does not take: an error with the place, and a run that can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from delivering import World, delivering, drain

import celery_durable as durable
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

done: list[str] = []


@dataclass
class Clip:
    """A value that a step may return, and a task may not."""

    path: str


@durable.step
def cut(path: str) -> Clip:
    done.append(path)
    return Clip(path)


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    done.clear()
    with delivering(store) as made:
        yield made


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (Clip("a"), "value", "Clip"),
        ({"clips": [1, {"it": Clip("a")}]}, 'value["clips"][1]["it"]', "Clip"),
        ([{"deep": (1, object())}], 'value[0]["deep"][1]', "object"),
        ({"a": "x", 7: b"\xff", (1, 2): 3}, "value", "dict"),
    ],
)
def test_the_error_names_the_place(world: World, value: Any, path: str, kind: str) -> None:
    def returns() -> Any:
        return value

    run_id = world.run(world.task(returns))

    error = world.result(run_id)
    assert isinstance(error, durable.SerializationError)
    assert f"{path} is of type " in str(error)
    assert error.facts["path"] == path
    assert error.facts["type"].endswith(kind)
    assert "The steps of the run are kept: resume it" in str(error)
    assert world.state(run_id) == ("failed", "SerializationError"), "and it is not retried"


def knotted() -> Any:
    outer: dict[str, Any] = {"clips": [1]}
    outer["clips"].append(outer)
    return outer


def nested(levels: int) -> Any:
    value: Any = [1]
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (knotted(), 'the value contains itself and cannot be stored: value["clips"][1] is value again'),
        (["a", knotted()], 'value[1]["clips"][1] is value[1] again'),
        (nested(1500), "is nested too deep for result_serializer"),
        (nested(5000), "is nested too deep for result_serializer"),
    ],
    ids=["knotted", "knotted inside", "deep", "deeper"],
)
def test_the_error_says_that_a_value_contains_itself_or_is_too_deep(
    world: World, value: Any, words: str
) -> None:
    def returns() -> Any:
        return value

    run_id = world.run(world.task(returns))

    error = world.result(run_id)
    assert isinstance(error, durable.SerializationError)
    assert words in str(error)
    assert "is of type" not in str(error)


def test_the_run_is_resumed_when_the_task_is_mended_and_repeats_no_step(world: World) -> None:
    mended: list[bool] = []

    def returns() -> Any:
        clip = cut("a")
        return clip.path if mended else clip

    run_id = world.run(world.task(returns))
    mended.append(True)
    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == "a"
    assert done == ["a"]


def test_a_serializer_that_is_not_registered_is_named_with_those_that_are(world: World) -> None:
    foreign = cut.options(serializer="nope")

    def returns() -> str:
        return foreign("a").path

    run_id = world.run(world.task(returns))

    error = world.result(run_id)
    assert isinstance(error, durable.ConfigurationError)
    assert "There is no serializer 'nope': kombu knows json, " in str(error)
    assert done == []
    assert world.state(run_id)[0] == "failed"
